// A stand-in for TensorRT-LLM's executor, for tests where there is none: what the shim uses of it, by the same names.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace tensorrt_llm::executor
{

using SizeType32 = std::int32_t;
using FloatType = float;
using TokenIdType = std::int32_t;
using VecTokens = std::vector<TokenIdType>;
using BeamTokens = std::vector<VecTokens>;
using IdType = std::uint64_t;
using RandomSeedType = std::uint64_t;

char const* version() noexcept;

enum class ModelType
{
    kDECODER_ONLY = 0,
};

enum class FinishReason
{
    kNOT_FINISHED = 0,
    kEND_ID = 1,
    kSTOP_WORDS = 2,
    kLENGTH = 3,
    kTIMED_OUT = 4,
    kCANCELLED = 5,
};

class SamplingConfig
{
public:
    void setTopK(std::optional<SizeType32> const& value) { topK = value; }
    void setTopP(std::optional<FloatType> const& value) { topP = value; }
    void setSeed(std::optional<RandomSeedType> const& value) { seed = value; }
    void setTemperature(std::optional<FloatType> const& value) { temperature = value; }

    std::optional<SizeType32> topK;
    std::optional<FloatType> topP;
    std::optional<RandomSeedType> seed;
    std::optional<FloatType> temperature;
};

class OutputConfig
{
public:
    bool excludeInputFromOutput{false};
};

class Request
{
public:
    Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming = false,
        SamplingConfig const& samplingConfig = SamplingConfig(), OutputConfig const& outputConfig = OutputConfig(),
        std::optional<SizeType32> const& endId = std::nullopt);

    VecTokens prompt;
    SizeType32 most;
    SamplingConfig sampling;
    std::optional<SizeType32> end;
};

struct Result
{
    bool isFinal{false};
    BeamTokens outputTokenIds;
    std::vector<FinishReason> finishReasons;
};

class Response
{
public:
    Response(IdType requestId, std::string errorMsg);
    Response(IdType requestId, Result result);

    [[nodiscard]] IdType getRequestId() const { return id; }
    [[nodiscard]] bool hasError() const { return error.has_value(); }
    [[nodiscard]] std::string const& getErrorMsg() const { return *error; }
    [[nodiscard]] Result const& getResult() const { return result; }

private:
    IdType id;
    std::optional<std::string> error;
    Result result;
};

class KvCacheConfig
{
public:
    void setEnableBlockReuse(bool value) { reuse = value; }
    void setFreeGpuMemoryFraction(FloatType value) { fraction = value; }

    bool reuse{true};
    std::optional<FloatType> fraction;
};

class ExecutorConfig
{
public:
    void setKvCacheConfig(KvCacheConfig const& value) { cache = value; }
    void setEnableChunkedContext(bool value) { chunked = value; }
    void setMaxBatchSize(SizeType32 value) { batch = value; }
    void setMaxNumTokens(SizeType32 value) { tokens = value; }

    KvCacheConfig cache;
    bool chunked{false};
    SizeType32 batch{8};
    SizeType32 tokens{512};
};

class Executor
{
public:
    Executor(std::filesystem::path const& modelPath, ModelType modelType, ExecutorConfig const& executorConfig);
    ~Executor();

    [[nodiscard]] IdType enqueueRequest(Request const& request);
    [[nodiscard]] std::vector<Response> awaitResponses(
        std::optional<std::chrono::milliseconds> const& timeout = std::nullopt);
    void cancelRequest(IdType requestId);

private:
    class Impl;
    std::unique_ptr<Impl> mImpl;
};

} // namespace tensorrt_llm::executor
