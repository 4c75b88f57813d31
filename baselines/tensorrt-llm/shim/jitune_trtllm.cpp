#include "jitune_trtllm.h"

#include "tensorrt_llm/executor/executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace ex = tensorrt_llm::executor;

#define EXPORTED extern "C" __attribute__((visibility("default")))

#ifdef JITUNE_TRTLLM_PLUGINS
// Engines do not open before this was called. Declared here, since its own header brings in all of TensorRT.
extern "C" bool initTrtLlmPlugins(void* logger, char const* libNamespace);
#endif

struct jitune_trtllm
{
    std::unique_ptr<ex::Executor> executor;
    // Requests that were cancelled and have not ended: versions differ in the reason that they give then.
    std::mutex lock;
    std::set<uint64_t> cancelled;
    // What the last await gave.
    std::vector<ex::VecTokens> ids;
    std::vector<std::string> errors;
    std::vector<jitune_trtllm_event> events;
};

namespace
{

void say(char const* why, char* error, size_t size)
{
    if (error == nullptr || size == 0)
    {
        return;
    }
    size_t const count = std::min(std::strlen(why), size - 1);
    std::memcpy(error, why, count);
    error[count] = '\0';
}

// Runs what may throw.
template <typename Body>
int32_t guarded(char* error, size_t size, Body body)
{
    try
    {
        body();
        return 0;
    }
    catch (std::exception const& e)
    {
        say(e.what(), error, size);
    }
    catch (...)
    {
        say("an exception of no known type", error, size);
    }
    return 1;
}

int32_t reason(ex::FinishReason why)
{
    switch (why)
    {
    case ex::FinishReason::kEND_ID:
    case ex::FinishReason::kSTOP_WORDS: return JITUNE_TRTLLM_STOP;
    case ex::FinishReason::kLENGTH: return JITUNE_TRTLLM_LENGTH;
    // Of others, which not every version has, the number of tokens tells who asked.
    default: return JITUNE_TRTLLM_FAILED;
    }
}

} // namespace

EXPORTED int32_t jitune_trtllm_abi(void)
{
    return JITUNE_TRTLLM_ABI;
}

EXPORTED char const* jitune_trtllm_version(void)
{
    return ex::version();
}

EXPORTED int32_t jitune_trtllm_open(
    char const* path, jitune_trtllm_options const* options, jitune_trtllm** opened, char* error, size_t error_size)
{
    return guarded(error, error_size,
        [&]
        {
#ifdef JITUNE_TRTLLM_PLUGINS
            initTrtLlmPlugins(nullptr, "tensorrt_llm");
#endif
            ex::KvCacheConfig cache;
            cache.setEnableBlockReuse(options->reuse_blocks != 0);
            if (options->memory_fraction > 0)
            {
                cache.setFreeGpuMemoryFraction(options->memory_fraction);
            }
            ex::ExecutorConfig config;
            config.setKvCacheConfig(cache);
            config.setEnableChunkedContext(options->chunked_context != 0);
            if (options->max_batch > 0)
            {
                config.setMaxBatchSize(options->max_batch);
            }
            if (options->max_tokens > 0)
            {
                config.setMaxNumTokens(options->max_tokens);
            }
            auto engine = std::make_unique<jitune_trtllm>();
            engine->executor = std::make_unique<ex::Executor>(path, ex::ModelType::kDECODER_ONLY, config);
            *opened = engine.release();
        });
}

EXPORTED int32_t jitune_trtllm_enqueue(jitune_trtllm* engine, int32_t const* ids, size_t count, int32_t most,
    jitune_trtllm_sampling const* sampling, int32_t end, uint64_t* request, char* error, size_t error_size)
{
    return guarded(error, error_size,
        [&]
        {
            ex::SamplingConfig chosen;
            if (sampling->temperature == 0)
            {
                chosen.setTopK(1);
            }
            else
            {
                chosen.setTemperature(sampling->temperature);
                chosen.setTopP(sampling->top_p);
                chosen.setSeed(sampling->seed);
                if (sampling->top_k > 0)
                {
                    chosen.setTopK(sampling->top_k);
                }
            }
            ex::OutputConfig output;
            output.excludeInputFromOutput = true;
            std::optional<ex::SizeType32> const ends = end < 0 ? std::nullopt : std::optional<ex::SizeType32>(end);
            ex::Request const asked(ex::VecTokens(ids, ids + count), most, true, chosen, output, ends);
            *request = engine->executor->enqueueRequest(asked);
        });
}

EXPORTED int32_t jitune_trtllm_await(jitune_trtllm* engine, int32_t milliseconds, jitune_trtllm_event const** events,
    size_t* count, char* error, size_t error_size)
{
    return guarded(error, error_size,
        [&]
        {
            engine->ids.clear();
            engine->errors.clear();
            engine->events.clear();
            auto const responses = engine->executor->awaitResponses(std::chrono::milliseconds(milliseconds));
            // What events point to must not move.
            engine->ids.reserve(responses.size());
            engine->errors.reserve(responses.size());
            for (auto const& response : responses)
            {
                uint64_t const id = response.getRequestId();
                auto const end = [&](int32_t why, char const* what)
                {
                    std::lock_guard<std::mutex> const guard(engine->lock);
                    bool const left = engine->cancelled.erase(id) > 0;
                    engine->events.push_back({id, JITUNE_TRTLLM_END, left ? JITUNE_TRTLLM_CANCELLED : why, nullptr, 0, left ? nullptr : what});
                };
                if (response.hasError())
                {
                    engine->errors.push_back(response.getErrorMsg());
                    end(JITUNE_TRTLLM_FAILED, engine->errors.back().c_str());
                    continue;
                }
                auto const& result = response.getResult();
                if (!result.outputTokenIds.empty() && !result.outputTokenIds.front().empty())
                {
                    engine->ids.push_back(result.outputTokenIds.front());
                    auto const& tokens = engine->ids.back();
                    engine->events.push_back({id, JITUNE_TRTLLM_TOKENS, 0, tokens.data(), tokens.size(), nullptr});
                }
                if (result.isFinal)
                {
                    auto const why = result.finishReasons.empty() ? JITUNE_TRTLLM_FAILED : reason(result.finishReasons.front());
                    end(why, why == JITUNE_TRTLLM_FAILED ? "it ended for a reason of its own" : nullptr);
                }
            }
            *events = engine->events.data();
            *count = engine->events.size();
        });
}

EXPORTED int32_t jitune_trtllm_cancel(jitune_trtllm* engine, uint64_t request, char* error, size_t error_size)
{
    return guarded(error, error_size,
        [&]
        {
            {
                std::lock_guard<std::mutex> const guard(engine->lock);
                engine->cancelled.insert(request);
            }
            engine->executor->cancelRequest(request);
        });
}

EXPORTED void jitune_trtllm_close(jitune_trtllm* engine)
{
    guarded(nullptr, 0, [&] { delete engine; });
}
