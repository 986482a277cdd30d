import './package-root.js' // must be first: in a bundle it fails with a clear error

export type {
  ChatAnswer,
  ChatGenerateOptions,
  ChatMode,
  ChatPiece,
  ChatSessionOptions,
  ChatToolCall,
  ChatTurnOptions,
  ChatTurnSettings,
} from './chat/options.js'
export { ChatSession } from './chat/session.js'
export type { ChatSignals, ChatThresholds } from './chat/signals.js'
export { defineTool, type Tool, type ToolContext, type ToolDefinition } from './chat/tools.js'
export type { ChatTurn } from './chat/turn.js'
export type { ChatMessage, ChatTemplateOptions } from './data/chat-template.js'
export type { ColumnSource, Columns, ReadyColumns } from './data/columns.js'
export { Corpus, type CorpusOptions } from './data/corpus.js'
export { type Dataset, type DatasetOptions, type Example, loadDataset, readDataset } from './data/dataset.js'
export { DatasetStream, type DatasetStreamOptions } from './data/dataset-stream.js'
export { download } from './data/download.js'
export { type DatasetDownloadOptions, downloadDataset } from './data/download-dataset.js'
export type { DownloadOptions } from './data/download-options.js'
export { Random } from './data/random.js'
export { type DecodeOptions, type EncodeOptions, Tokenizer, type TokenizerConfig } from './data/tokenizer.js'
export type { ToolCall } from './data/tool-calls.js'
export { type ErrorCode, LoopLMError } from './errors.js'
export type { Grammar } from './grammar/grammar.js'
export {
  kernels,
  type LoopedBlockOptions,
  type LoopedBlockWeights,
  type LoopedLayerWeights,
  type PolicyGradientInputs,
  type PolicyGradientObjective,
  type PolicyGradientStatistics,
} from './kernels.js'
export type { Adapter, LoRAModule, LoRAOptions } from './model/adapter.js'
export type { LoopLMConfig, LoopLMConfigInput } from './model/config.js'
export { type EstimateOptions, estimateMemory, type MemoryEstimate } from './model/estimate.js'
export type { ExitRule } from './model/exit-rules.js'
export { LoopLM } from './model/model.js'
export { AdamW, type AdamWOptions, type ExchangeTimes } from './model/optimizer.js'
export { GenerateRequest, Scheduler } from './model/scheduler.js'
export type { ScoredSequences } from './model/score.js'
export type {
  BackwardLoops,
  BackwardOptions,
  BackwardResult,
  CachePolicy,
  CacheType,
  ContinueOptions,
  CreateOptions,
  FinishReason,
  GenerateChunk,
  GenerateOptions,
  GenerateResult,
  InputOptions,
  InputVectors,
  LoadOptions,
  LogitsContext,
  LogitsProcessor,
  LoopWeights,
  ModelDType,
  ParameterInfo,
  PretrainedOptions,
  Prompt,
  PromptCache,
  RealArray,
  Recompute,
  SaveOptions,
  SchedulerOptions,
  SchedulerRequestOptions,
  SchedulerStats,
  ScoredBackwardOptions,
  ScoreOptions,
  Scores,
  StateOptions,
  Surrogate,
  TokenLogprob,
  TokenSequence,
} from './model/types.js'
export type { LoggedCompletion, LoggedRun, Logger, RunFacts, RunNote, RunOutcome } from './monitor/logger.js'
export type { LoggerName } from './monitor/loggers/built-in.js'
export { loadLogger } from './monitor/loggers/load.js'
export { writeReport } from './monitor/report.js'
export type { CompletionGroup, Curve, RunData } from './monitor/report-data.js'
export { RunReader } from './monitor/run-reader.js'
export { type Watcher, watch } from './monitor/watch.js'
export type { Architecture, ParameterForm, Residual, Role, RotaryEmbedding, Step } from './native/architecture.js'
export { type ParallelOptions, parallel, type World } from './parallel.js'
export type { BatchTurn, RolloutBatch } from './rl/batch.js'
export type { BestEvaluation, CallbackContext, Measurement, RunningTrainer, TrainerCallbacks } from './rl/callbacks.js'
export type { Environment, EnvironmentContext, Episode, EpisodeTurn, StepResult } from './rl/environment.js'
export { type Answer, type EvaluateOptions, type Evaluation, evaluate } from './rl/evaluate.js'
export { evaluateSequences, type PredictedSequence, type SequenceEvaluation } from './rl/evaluate-sequences.js'
export type { Metrics, SampledCompletion, TrainerEvent, UpdateMetrics } from './rl/events.js'
export { GRPOTrainer } from './rl/grpo.js'
export { type LoopRPTBatch, LoopRPTTrainer } from './rl/looprpt.js'
export type { ObjectiveContext, ObjectiveGradient, OwnObjective } from './rl/objective/custom-objective.js'
export { type Phase, type RecipeName, type Recipes, recipes } from './rl/objective/recipes.js'
export type { ObjectiveInput } from './rl/objective/schema.js'
export { ObjectiveTrainer } from './rl/objective-trainer.js'
export type {
  GRPOOptions,
  LoopRPTOptions,
  ObjectiveTrainerOptions,
  PolicyConfig,
  PretrainOptions,
  Rewards,
  RLTTOptions,
  TrainerConfig,
} from './rl/options.js'
export { type ObjectiveSchedule, PolicyGradientTrainer } from './rl/policy-gradient.js'
export { type PretrainBatch, PretrainTrainer } from './rl/pretrain.js'
export { RLTTTrainer } from './rl/rltt.js'
export type { RolloutContext, RolloutFunction } from './rl/rollout-function.js'
export type { Problem, Rollout, RolloutTurn } from './rl/rollout-record.js'
export { averageAtK, bootstrapInterval, type Interval, passAtK, wilsonInterval } from './rl/statistics.js'
export { type BatchGradients, type Prepared, Trainer } from './rl/trainer.js'
export type { StepWork } from './rl/updates.js'
export type { ServeOptions, ServerSettings, ServeSettings } from './serve/options.js'
export { createServer, LoopLMServer } from './serve/server.js'
export { countdownMatch } from './tasks/countdown.js'
export * from './tasks/index.js'
export {
  answersEqual,
  boxedMatch,
  combineRewards,
  exactMatch,
  lastBoxed,
  loadRewards,
  normalizeAnswer,
  type RewardFunction,
  type WeightedReward,
} from './tasks/rewards.js'
export { concat, full, ones, tensor, zeros } from './tensor/create.js'
export {
  type DeviceMemory,
  type DeviceStatus,
  deviceMemory,
  devices,
  type MemoryStatistics,
  memory,
  resetPeakMemory,
} from './tensor/devices.js'
export { Tensor } from './tensor/tensor.js'
export type { DeviceName, DType, DTypeArrays, FloatDType, NestedNumbers, TensorOptions } from './tensor/types.js'
