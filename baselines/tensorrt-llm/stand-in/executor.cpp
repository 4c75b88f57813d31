// The stand-in's model: each token is the sum of all before it, and one more, modulo 97. A sampled token adds the seed. A prompt with the
// token 66 goes wrong after its first token. A step takes a millisecond.
#include "tensorrt_llm/executor/executor.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace tensorrt_llm::executor
{

char const* version() noexcept
{
    return "0.0.0-stand-in";
}

Request::Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming, SamplingConfig const& samplingConfig,
    OutputConfig const& outputConfig, std::optional<SizeType32> const& endId)
    : prompt(std::move(inputTokenIds))
    , most(maxTokens)
    , sampling(samplingConfig)
    , end(endId)
{
    if (prompt.empty() || most < 1 || !streaming || !outputConfig.excludeInputFromOutput)
    {
        throw std::invalid_argument("a prompt of no token, or an answer of none");
    }
}

Response::Response(IdType requestId, std::string errorMsg)
    : id(requestId)
    , error(std::move(errorMsg))
{
}

Response::Response(IdType requestId, Result r)
    : id(requestId)
    , result(std::move(r))
{
}

class Executor::Impl
{
public:
    explicit Impl(SizeType32 batch)
        : mBatch(static_cast<size_t>(batch))
        , mThread([this] { run(); })
    {
    }

    ~Impl()
    {
        {
            std::lock_guard<std::mutex> const guard(mLock);
            mStop = true;
        }
        mChanged.notify_all();
        mThread.join();
    }

    IdType enqueue(Request const& request)
    {
        std::lock_guard<std::mutex> const guard(mLock);
        mActive.emplace(++mLast, Active{request, 0, 0, false});
        mChanged.notify_all();
        return mLast;
    }

    void cancel(IdType id)
    {
        std::lock_guard<std::mutex> const guard(mLock);
        if (auto const found = mActive.find(id); found != mActive.end())
        {
            found->second.cancelled = true;
        }
    }

    std::vector<Response> await(std::optional<std::chrono::milliseconds> const& timeout)
    {
        std::unique_lock<std::mutex> guard(mLock);
        mReady.wait_for(guard, timeout.value_or(std::chrono::hours(1)), [this] { return !mResponses.empty(); });
        std::vector<Response> all(mResponses.begin(), mResponses.end());
        mResponses.clear();
        return all;
    }

private:
    struct Active
    {
        Request request;
        int64_t sum;
        SizeType32 made;
        bool cancelled;
    };

    void run()
    {
        std::unique_lock<std::mutex> guard(mLock);
        while (true)
        {
            mChanged.wait(guard, [this] { return mStop || !mActive.empty(); });
            if (mStop)
            {
                return;
            }
            step();
            mReady.notify_all();
            guard.unlock();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            guard.lock();
        }
    }

    // One token for each of the oldest requests.
    void step()
    {
        size_t computed = 0;
        for (auto at = mActive.begin(); at != mActive.end() && computed < mBatch; ++computed)
        {
            auto const next = std::next(at);
            if (one(at->first, at->second))
            {
                mActive.erase(at);
            }
            at = next;
        }
    }

    // Whether it has ended.
    bool one(IdType id, Active& active)
    {
        Result result;
        if (active.cancelled)
        {
            result.isFinal = true;
            result.outputTokenIds = {{}};
            result.finishReasons = {FinishReason::kCANCELLED};
            mResponses.emplace_back(id, result);
            return true;
        }
        bool bad = false;
        if (active.made == 0)
        {
            for (auto const token : active.request.prompt)
            {
                active.sum += token;
            }
        }
        for (auto const token : active.request.prompt)
        {
            bad = bad || (token == 66 && active.made > 0);
        }
        if (bad)
        {
            mResponses.emplace_back(id, std::string("the token 66 cannot be computed"));
            return true;
        }
        auto const greedy = active.request.sampling.topK == 1;
        auto const seed = greedy ? 0 : static_cast<int64_t>(active.request.sampling.seed.value_or(0));
        auto const token = static_cast<TokenIdType>((active.sum + 1 + seed) % 97);
        active.sum += token;
        active.made += 1;
        auto const stops = active.request.end == token;
        result.isFinal = stops || active.made == active.request.most;
        result.outputTokenIds = {{token}};
        result.finishReasons = {stops ? FinishReason::kEND_ID : result.isFinal ? FinishReason::kLENGTH : FinishReason::kNOT_FINISHED};
        mResponses.emplace_back(id, result);
        return result.isFinal;
    }

    size_t mBatch;
    std::mutex mLock;
    std::condition_variable mChanged, mReady;
    bool mStop{false};
    IdType mLast{0};
    std::map<IdType, Active> mActive;
    std::deque<Response> mResponses;
    std::thread mThread;
};

Executor::Executor(std::filesystem::path const& modelPath, ModelType, ExecutorConfig const& executorConfig)
{
    if (!std::filesystem::exists(modelPath / "config.json"))
    {
        throw std::runtime_error("no engine at " + modelPath.string());
    }
    mImpl = std::make_unique<Impl>(executorConfig.batch);
}

Executor::~Executor() = default;

IdType Executor::enqueueRequest(Request const& request)
{
    return mImpl->enqueue(request);
}

std::vector<Response> Executor::awaitResponses(std::optional<std::chrono::milliseconds> const& timeout)
{
    return mImpl->await(timeout);
}

void Executor::cancelRequest(IdType requestId)
{
    mImpl->cancel(requestId);
}

} // namespace tensorrt_llm::executor
