"""The continuous batching of transformers as an engine: its manager has a thread of its own, and tells each token of a request."""

import math
import threading

from engine_transformers import DTYPES
from peer import Refusal

GREEDY = (0.0, 1.0, 0)
# Tokens of a page, its default.
PAGE = 256


class Request:
    def __init__(self, number, teller):
        self.number, self.teller, self.told = number, teller, 0


class Continuous:
    """Requests join and leave at any step. A manager samples all requests alike: others wait for its end, and a new one is made."""

    def __init__(self, model):
        self.model = model
        self.manager, self.thread, self.settings, self.ask = None, None, None, None
        self.lock = threading.Lock()
        # By the manager's names of them; `serial` tells a number that is used again apart.
        self.running, self.serial = {}, 0
        self.prompt_tokens = self.answer_tokens = 0

    def load(self, ask):
        if not hasattr(self.model.transformers, "ContinuousBatchingConfig"):
            why = f"transformers {self.model.transformers.__version__} has no continuous batching as it is used here"
            raise Refusal("missing", why, "python3 -m pip install --upgrade transformers")
        self.close()
        self.model.load(ask)
        self.ask = ask
        self.prompt_tokens = self.answer_tokens = 0
        self.open(GREEDY)
        torch, device = self.model.torch, self.model.device
        planned = torch.cuda.memory_reserved(device) if device.type == "cuda" else None
        notes = [f"attention: {self.model.net.config._attn_implementation}", "one sampling at a time"]
        return {
            "batching": "continuous",
            "sequences": ask["sequences"],
            "vocab": self.model.vocab,
            "memory_bytes": planned,
            "notes": notes,
        }

    def open(self, settings):
        """A manager for one way to choose tokens, warmed up and running."""
        transformers, torch = self.model.transformers, self.model.torch
        temperature, top_p, top_k = settings
        chosen = {"do_sample": False}
        if temperature > 0:
            chosen = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        generation = transformers.GenerationConfig(
            **chosen, max_new_tokens=self.ask["context"], eos_token_id=sorted(self.model.ends) or -1
        )
        limits = {
            "max_requests_per_batch": self.ask["sequences"],
            "allow_block_sharing": bool(self.ask.get("prefix")),
            # Its kernels come from the network where flash attention is not installed.
            "auto_switch_to_flash": flash_is_installed(),
        }
        pages = math.ceil(self.ask["context"] / PAGE)
        if self.model.device.type == "cpu":
            # It would take most of the host's memory.
            limits |= {"num_blocks": (pages + 1) * self.ask["sequences"], "max_batch_tokens": 512}
        else:
            limits["max_blocks_per_request"] = pages + 1 + (pages + 1) % 2
        known = vars(transformers.ContinuousBatchingConfig())
        config = transformers.ContinuousBatchingConfig(**{k: v for k, v in limits.items() if k in known})
        with torch.no_grad():
            self.manager = self.model.net.init_continuous_batching(
                generation_config=generation, continuous_batching_config=config
            )
            if hasattr(self.manager, "warmup"):
                self.manager.warmup()
            self.manager.start()
        self.settings = settings
        self.thread = threading.Thread(target=self.deliver, args=(self.manager,), name="outputs", daemon=True)
        self.thread.start()

    def deliver(self, manager):
        """Tells what the manager puts out, until it ends."""
        while self.manager is manager:
            output = manager.get_result(timeout=0.5)
            if output is not None:
                self.tell(output)
            elif not manager.is_running():
                break
        with self.lock:
            lost, self.running = self.running, {}
        for request in lost.values():
            request.teller.end(request.number, "failed", error="the manager of continuous batching ended")

    def tell(self, output):
        # The end of a cancelled one is told already.
        request = self.running.get(output.request_id)
        if request is None:
            return
        # All tokens so far.
        fresh = output.generated_tokens[request.told :]
        request.told += len(fresh)
        if fresh:
            request.teller.tokens(request.number, fresh)
            self.answer_tokens += len(fresh)
        failed = output.error is not None
        if not failed and not output.is_finished():
            return
        with self.lock:
            mine = self.running.pop(output.request_id, None) is not None
        if mine:
            stops = not failed and request.told < request.most
            why = "failed" if failed else "stop" if stops else "length"
            request.teller.end(request.number, why, error=output.error)

    def submit(self, number, asked, teller):
        sampling = asked["sampling"]
        settings = (sampling["temperature"], sampling["top_p"], sampling["top_k"])
        settings = settings if settings[0] > 0 else GREEDY
        if settings != self.settings or not self.manager.is_running():
            if self.running:
                raise Refusal("unsupported", "its continuous batching samples all that runs at a time alike")
            self.shut()
            self.open(settings)
        request = Request(number, teller)
        request.most = asked["most"]
        self.serial += 1
        name = f"{number}-{self.serial}"
        self.running[name] = request
        ends = {"eos_token_id": -1} if asked["ignore_eos"] else {}
        taken = self.manager.add_request(
            asked["prompt"], request_id=name, max_new_tokens=asked["most"], streaming=True, **ends
        )
        if taken is None:
            self.running.pop(name, None)
            raise Refusal("failed", "the manager of continuous batching takes no requests")
        self.prompt_tokens += len(asked["prompt"])

    def cancel(self, number, teller):
        with self.lock:
            name = next((name for name, request in self.running.items() if request.number == number), None)
            request = self.running.pop(name, None)
        if request is not None:
            self.manager.cancel_request(name)
            teller.end(number, "cancelled")

    def work(self, teller):
        return False

    def logits(self, prompt, file):
        if self.running:
            raise Refusal("failed", "logits are written when nothing runs")
        self.model.logits(prompt, file)

    def stats(self):
        counts = {"prompt_tokens": self.prompt_tokens, "answer_tokens": self.answer_tokens}
        return {"running": len(self.running), **counts, **self.model.memory()}

    def reset(self):
        if self.ask.get("prefix"):
            settings = self.settings
            self.shut()
            self.open(settings)

    def shut(self):
        manager, self.manager = self.manager, None
        if manager is not None:
            manager.stop(block=True, timeout=30)
            self.thread.join(5)
            if hasattr(manager, "destroy"):
                manager.destroy()

    def close(self):
        self.shut()
        self.model.release()


def flash_is_installed():
    import importlib.util

    return any(importlib.util.find_spec(name) is not None for name in ("flash_attn_interface", "flash_attn"))
