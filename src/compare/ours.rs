//! jitune's own winners as a peer: loaded from a bundle by the production runtime, launched as production launches them,
//! timed by the same loop as every other peer.

use super::pieces::Chain;
use crate::backend::cuda;
use crate::bundle::Bundle;
use crate::problem::{Problem, Storage};
use crate::program::{Life, Named};
use crate::runtime::{Bound, Memory, Queue, Runtime, View};
use jitune_peer::{About, Device, Peer, Prepared, Refusal, RefusalKind, RefusedWay, Stream, Task, Way, Work};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// The option that names the bundle.
pub const WINNERS: &str = "winners";
/// The option that gives another name, for the twin that shows the instrument's noise.
pub const NAME: &str = "name";

/// The peer; opened by `hello`, unless there are no winners at all: the others are compared without it then.
#[derive(Default)]
pub struct Ours {
    open: Option<Open>,
}

#[derive(Clone)]
struct Open {
    runtime: Arc<Runtime>,
    stream: Option<Rc<cuda::Stream>>,
}

impl Peer for Ours {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let Some(path) = options.get(WINNERS) else { return Err(Refusal::failed("no `winners` are given")) };
        let bundle = Bundle::open(path).map_err(Refusal::failed)?;
        let mut about = About {
            peer: options.get(NAME).cloned().unwrap_or_else(|| "jitune".into()),
            version: env!("CARGO_PKG_VERSION").into(),
            ..About::default()
        };
        if bundle.is_empty() {
            return Ok(about);
        }
        let (runtime, stream) = match device {
            Device::Cuda(ordinal) => {
                let runtime = Runtime::cuda(&bundle, ordinal).map_err(Refusal::failed)?;
                // The timer of peers takes the current one.
                runtime.make_current().map_err(Refusal::failed)?;
                let stream = runtime.stream().map_err(Refusal::failed)?;
                (runtime, Some(Rc::new(stream)))
            }
            Device::Cpu(threads) => (Runtime::cpu(&bundle, Some(threads)).map_err(Refusal::failed)?, None),
        };
        about.device.clone_from(&runtime.device().name);
        self.open = Some(Open { runtime: Arc::new(runtime), stream });
        Ok(about)
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
        let Some(open) = &self.open else { return Err(Refusal::unsupported("there are no winners")) };
        let problem: Problem = task.problem.parse().map_err(Refusal::failed)?;
        let (mut ways, mut chains, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut add = |way: &str, chain: Chain| match open.load(task, &chain) {
            Ok((loaded, how)) => {
                ways.push(Way::part(way, how, chain.covers));
                chains.push(loaded);
            }
            Err(why) => {
                refused.push(RefusedWay { way: way.into(), kind: RefusalKind::Failed, why: why.to_string() });
            }
        };
        add("tuned", Chain::whole(&problem));
        if let Some(chain) = Chain::unfused(&problem) {
            add("unfused", chain);
        }
        if ways.is_empty() {
            let why = refused.first().map_or_else(String::new, |r| r.why.clone());
            return Err(Refusal::unsupported(why));
        }
        Ok(Prepared { work: Box::new(Ready { open: open.clone(), chains }), ways, refused })
    }
}

/// A way on its memory.
struct Loaded {
    /// The launches of each set, in order.
    bound: Vec<Vec<Bound>>,
    /// Outputs of set 0 by name.
    outputs: Vec<Output>,
    memory: Vec<Vec<Memory>>,
}

struct Output {
    name: &'static str,
    memory: usize,
    bytes: u64,
    storage: Storage,
    /// Columns of the output, and of the wider rows that it stands in.
    inside: Option<(u64, u64)>,
}

impl Open {
    /// Loads a chain: memory for its tensors in every set, inputs filled, launches bound. Says what it is made of.
    fn load(&self, task: &Task, chain: &Chain) -> Result<(Loaded, String), Refusal> {
        let runtime = &self.runtime;
        let named = &chain.program.tensors;
        let contents = |t: &Named| match t.life {
            Life::Activation | Life::State => Ok(vec![0xff; t.bytes() as usize]),
            Life::Weight | Life::Metadata => task.tensor(&t.name)?.load(),
        };
        let contents = named.iter().map(contents).collect::<Result<Vec<_>, Refusal>>()?;
        let mut sets = Vec::new();
        for _ in 0..task.sets {
            let memory = named
                .iter()
                .map(|t| runtime.allocate(t.bytes()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(Refusal::failed)?;
            // Every set holds the same values: where they lie is what matters.
            for (bytes, m) in contents.iter().zip(&memory) {
                m.upload(bytes).map_err(Refusal::failed)?;
            }
            sets.push(memory);
        }
        let (mut bound, mut how) = (Vec::new(), Vec::new());
        for _ in 0..task.sets {
            bound.push(Vec::new());
        }
        for step in &chain.program.steps {
            let kernel = runtime.lookup(&step.problem).map_err(Refusal::failed)?;
            how.push(format!("{} {}", kernel.template(), kernel.config()));
            let workspace = runtime.workspace(&kernel).map_err(Refusal::failed)?;
            for (memory, list) in sets.iter().zip(&mut bound) {
                let views: Vec<View> = step.tensors.iter().map(|at| memory[*at].test_data()).collect();
                list.push(kernel.bind(views, &workspace).map_err(Refusal::failed)?);
            }
        }
        let mut outputs = Vec::new();
        for out in &chain.outputs {
            let no_output = || Refusal::failed("a chain has no such output");
            let at = chain.program.tensor(out.tensor).ok_or_else(no_output)?;
            outputs.push(Output {
                name: out.name,
                memory: at,
                bytes: named[at].bytes(),
                storage: named[at].storage,
                inside: out.inside,
            });
        }
        Ok((Loaded { bound, outputs, memory: sets }, how.join(" + ")))
    }
}

struct Ready {
    open: Open,
    chains: Vec<Loaded>,
}

impl Ready {
    fn queue(&self) -> Queue<'_> {
        self.open.stream.as_deref().map_or(Queue::Host, Queue::from)
    }
}

impl Work for Ready {
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal> {
        let queue = self.queue();
        self.chains[way].bound[set].iter().try_for_each(|b| b.launch(queue)).map_err(Refusal::failed)
    }

    fn wait(&mut self) -> Result<(), Refusal> {
        self.open.stream.as_ref().map_or(Ok(()), |s| s.synchronize().map_err(Refusal::failed))
    }

    fn stream(&self, _: usize) -> Option<Stream> {
        self.open.stream.as_ref().map(|s| s.peer())
    }

    fn read(&mut self, way: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        let chain = &self.chains[way];
        let Some(out) = chain.outputs.iter().find(|o| o.name == tensor) else {
            return Err(Refusal::failed(format!("no output {tensor}")));
        };
        let mut bytes = vec![0; out.bytes as usize];
        chain.memory[0][out.memory].download(&mut bytes).map_err(Refusal::failed)?;
        let place = |i: &u64| out.inside.map_or(*i, |(columns, row)| i / columns * row + i % columns);
        let value = |i| out.storage.value(&bytes, place(i));
        Ok(indices.iter().map(value).collect())
    }

    fn poison(&mut self, way: usize) -> Result<(), Refusal> {
        let chain = &self.chains[way];
        for out in &chain.outputs {
            let poison = vec![0xff; out.bytes as usize];
            chain.memory[0][out.memory].upload(&poison).map_err(Refusal::failed)?;
        }
        Ok(())
    }
}
