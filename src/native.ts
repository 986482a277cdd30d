/**
 * The types and functions of the native addon. Its functions validate again what could crash the process.
 */
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { whenAborted } from './abort.js'
import { LoopLMError, toLoopLMError } from './errors.js'
import type { Architecture } from './native/architecture.js'
import type { BeliefRewards, DType, LossMetrics, LossTerm, ModelDType, RealArray } from './native/types.js'
import { packageRoot } from './package-root.js'

/**
 * An object of the engine. `dispose` frees its memory after the calls that still use it. The garbage collector is the fallback.
 */
export interface NativeHandle<Kind extends string = string> {
  readonly kind: Kind
  readonly disposed: boolean
  dispose(): void
}
export type NativeContext = NativeHandle<'context'>
export type NativeTensor = NativeHandle<'tensor'>
export type NativeModel = NativeHandle<'model'>
export type NativeOptimizer = NativeHandle<'optimizer'>
export type NativeScheduler = NativeHandle<'scheduler'>
export type NativeAverage = NativeHandle<'moving average'>
export type NativeWorld = NativeHandle<'world'>

/** Aborts one call between two kernels. */
export type NativeCancel = NativeHandle<'cancel flag'>

/** Concatenated sequences. */
export interface NativeSequences {
  tokens: Int32Array
  lengths: Int32Array
  /** Empty: 1 each. */
  promptLengths: Int32Array
  /** For models that start from a state: [tokens, D]. Absent: drawn from `stateSeed` (default 0), or zeros. */
  states?: Float64Array
  stateSeed?: number
  zeroStates?: boolean
  vectors?: NativeVectors
  /** Per prediction, len-1 each: the loop that it was read from, counted from 0. Replayed in the backward pass. */
  exits?: Int32Array
}

/** Vectors that replace embedded tokens: their positions among all tokens, ascending, and values [tokens, D]. */
export interface NativeVectors {
  tokens: Int32Array
  values: Float64Array
}

/** Which loops run, are read and carry gradient. LoopOptions of native/engine/sequences.h. */
export interface NativeLoops {
  /** 0: the model's. */
  loops: number
  /** Counted from 1, ascending. Absent: every loop. */
  readLoops?: Int32Array
  /** Number of last loops that carry gradient. Absent or 0: all. */
  backwardLoops?: number
  /** Per loop, how many of its first steps carry no gradient. */
  constantSteps?: Int32Array
}

export interface NativeScores {
  loops: number
  logprobs: RealArray[]
  /** Token ids. Absent unless requested. */
  predicted?: Float64Array[]
  /** With `top`, (len-1) × top per sequence, concatenated. Token -1 for predictions that were not scored. */
  topTokens?: Int32Array
  topLogprobs?: Float64Array
  entropy: RealArray[]
  gateLogits: RealArray[]
  exitPdf: RealArray[]
}

/** LossObjective with every default filled in. */
export interface NativeObjective extends NativeLoops {
  terms: readonly (Required<Omit<LossTerm, 'belief' | 'weights'>> & { belief: LossTerm['belief']; weights: NativeLoopWeights })[]
  beta: number
  betaLoops: string
  tokenEntropy: number
  exitEntropy: number
  lazy: { gate: string; loops: string } | undefined
  temperature: number
  recompute: string
  tokensPerMicroBatch: number
  sharePrompts: boolean
}

export interface NativeLoopWeights {
  kind: string
  temperature: number
  alpha: number
  loop: number
  /** For kind `given`. */
  weights?: Float64Array
  detach: boolean
}

/** The concatenated arrays of a LossBatch. An empty array is absent. */
export interface NativeLossValues {
  terms: readonly { advantages: Float64Array; tokenAdvantages: Float64Array; lengthNormalizers: Float64Array }[]
  lengthNormalizers: Float64Array
  oldLogprobs: Float64Array
  referenceLogprobs: Float64Array
  lazyLogprobs: Float64Array
  lazyNormalizers: Float64Array
  referenceEntropy: Float64Array
  referenceExitPdf: Float64Array
  numbers: Int32Array
  exits: Int32Array
  segments: Int32Array
  mask: Int32Array
}

export interface NativeAdamWOptions {
  learningRate: number
  beta1: number
  beta2: number
  epsilon: number
  weightDecay: number
  maxGradNorm: number
  /** The names of the parameters to change. Empty: all. */
  only: readonly string[]
  /** Whether this process failed to compute its gradients. The step then fails in all processes. */
  failed: boolean
}

export interface NativeLoopRptOptions {
  rho: number
  tau: number
  lambdaBase: number
  lambdaScale: number
  policyCoefficient: number
  representationCoefficient: number
  entropyCoefficient: number
  klCoefficient: number
  rollouts: number
  sigma: number
  noiseSite: string
  antithetic: boolean
  rewardFrom: string
  klReduction: string
  seed: number
  recompute: string
  tokensPerMicroBatch: number
}

export interface NativeLoopRptMetrics {
  loss: number
  policyLoss: number
  representationLoss: number
  entropyLoss: number
  kl: number
  reward: number
  rewardStd: number
  referenceLoop: number
  exitLoop: number
  meanLoop: number
  tokens: number
  loopLogprob: number[]
  loopWeight: number[]
  loopExit: number[]
}

export interface NativeSchedulerOptions {
  maxRows: number
  /** 0: only limited by memory. */
  maxTokens: number
  /** 0: the model's. */
  loops: number
  sharedCache: boolean
  /** Allow shared planes in families that do not support them. */
  force: boolean
  /** Bits of cached keys and values, 4 or 8. 0: the model's dtype. */
  cacheBits: number
  residualBits: number
  /** Half of the numbers of a group of keys have codes. */
  prunedKeys: boolean
  /** How many tokens of ended prompts to keep. 0: none, -1: as many as memory allows. */
  promptCache: number
  prefillTokens: number
}

/** Options that change the logits before a draw. */
export interface NativeLogitOptions {
  biasTokens: Int32Array
  biases: Float64Array
  bannedTokens: Int32Array
  repetitionPenalty: number
  frequencyPenalty: number
  presencePenalty: number
  /** What JavaScript must compute before every draw. It answers with schedulerAnswer. */
  host: 'none' | 'mask' | 'logits'
}

export interface NativeGenerateRequest extends NativeLogitOptions {
  prompt: Int32Array
  maxNewTokens: number
  temperature: number
  topK: number
  topP: number
  minP: number
  seed: number
  rule: string
  threshold: number
  minLoops: number
  /** How many agreements in a row, for rule argmax-stable. */
  patience: number
  /** 0: the scheduler's. */
  loops: number
  stopTokens: Int32Array
  sequence: number
  /** Keep its keys and values after it has ended. */
  keep: boolean
  /** The kept request that it continues. 0: none. */
  parent: number
  /** Number of first tokens with bidirectional attention, for families that have it. 0: the whole prompt. */
  prefix: number
  releaseParent: boolean
  alternatives: number
  /** 0: no speculation. */
  draftLoops: number
  draftTokens: number
  wavefront: boolean
  /** Initial states, (prompt + maxNewTokens) × D. Empty: drawn from the seed. */
  states: Float64Array
  stateSeed: number
  zeroStates: boolean
  /** Vectors for tokens of the prompt. */
  vectors?: NativeVectors
}

export interface NativeGenerateEvent {
  request: number
  tokens: number[]
  logprobs: RealArray
  loops: number[]
  /** Per token, if requested. */
  alternatives: { token: number; logprob: number }[][]
  finish: 'none' | 'length' | 'stop' | 'failed'
  /** The logits of the next draw, [V], if the request's host is `logits`. */
  logits?: RealArray
  /** The out-of-memory error of a failed request; otherwise empty. */
  failure: string
  /** If there are tokens: how many prompt tokens came from the cache. */
  reused: number
}

/** Counters of a {@link Scheduler}. */
export interface SchedulerStats {
  /** Requests that have a row in the batch. */
  rows: number
  /** Requests that wait for a row. */
  waiting: number
  /** Tokens of the cache in use: prompts, and room reserved for the responses. */
  cachedTokens: number
  /** Capacity of the cache in tokens. */
  slots: number
  /** Passes over the weights so far. Each runs one loop of every row. */
  passes: number
  /** Total number of rows in all passes so far. */
  passRows: number
  /** Passes that the device replayed from a recording (on CUDA, a graph). */
  replayedPasses: number
  /** Tokens whose loops were all computed by one device call (on CUDA, one kernel). Each adds its number of loops to `passes`. */
  wholeTokens: number
  /** Ended requests that are kept in the cache. */
  kept: number
  /** Kept requests that were evicted so far. */
  evicted: number
  /** How often an active request ran out of memory, freed its cache for others and restarted. Its tokens are the same. */
  restarted: number
  /** Prompt tokens that have run so far. */
  prefilled: number
  /** Prompt tokens that came from the cache so far. */
  reused: number
  /** Prompts whose beginning was in the cache so far. */
  hits: number
  /** Tokens of ended prompts that the cache keeps for later prompts, see `promptCache`. They are part of `cachedTokens`. */
  retained: number
  /** Positions drafted with `speculate` so far. `passRows / passes` is the mean number of rows per pass. */
  drafted: number
  /** Drafted positions that were accepted. */
  accepted: number
}

export interface NativeKernelShape {
  rows: number
  hidden: number
  intermediate: number
  vocabulary: number
  length: number
  heads: number
  kvHeads: number
}

export interface NativeReduction {
  loss: number
  ratio: number
  clippedLow: number
  clippedHigh: number
  rows: number
  coefficients: NativeTensor
}

type Cancel = NativeCancel | undefined
type Arrays = Float32Array | Float64Array | Int32Array | Uint16Array

/** Quantized weights, with a scale per `groupSize` neighbours of a row. */
export interface Quantization {
  /** Bits per weight. */
  readonly bits: 4 | 8
  /** How many neighbours of a row share a scale. */
  readonly groupSize: number
  /** true: a group has a midpoint besides its scale, see {@link LoadOptions.quantize}. Defaults to false. */
  readonly asymmetric?: boolean
  /** false: the head is not quantized. Defaults to true. */
  readonly head?: boolean
}

/** Adds the form of activations in products. undefined: what the device prefers. */
export interface NativeQuantization extends Quantization {
  readonly activations?: 'float' | 'int8'
}

/** A file whose header TypeScript has parsed: the positions of a model's tensors in it. */
export interface NativeTensorFile {
  path: string
  tensors: readonly {
    /** Name of the parameter. */
    name: string
    /** F32, BF16, F16, F64, or a type of native/engine/block_formats.h. */
    type: string
    shape: readonly number[]
    /** Offset in the file, in bytes. */
    offset: number
    /** Rows per head, if the two halves of each head are interleaved. 0: rows are in order. */
    headRows?: number
  }[]
}

export interface NativeBinding {
  devices(opened: boolean): { name: string; description: string; available: boolean }[]
  memory(): { bytes: number; peak: number; buffers: number }
  /** Tokens of a training micro-batch if tokensPerMicroBatch is 0. */
  microBatchTokens(
    context: NativeContext,
    architecture: Architecture,
    dtype: DType,
    loops: number,
    recompute: 'none' | 'loop' | 'layer',
  ): number
  /** Memory of a context's device (or of the host without one) in bytes: total, and how much can still be allocated. */
  deviceMemory(context: NativeContext | undefined): { free: number; total: number }
  resetPeakMemory(): void
  createCancel(): NativeCancel
  cancel(flag: NativeCancel): void
  /**
   * Locks an open file for this process until it is closed. Returns false if another process or another open file holds the
   * lock.
   */
  lockFile(file: number): boolean
  openContext(device: string, threads: number): NativeContext

  tensorCreate(context: NativeContext, dtype: DType, shape: readonly number[], data: Arrays): NativeTensor
  tensorFill(context: NativeContext, dtype: DType, shape: readonly number[], value: number): NativeTensor
  tensorShape(tensor: NativeTensor): number[]
  tensorData(tensor: NativeTensor): Promise<Arrays>
  tensorMatmul(a: NativeTensor, b: NativeTensor, transposeA: boolean, transposeB: boolean): Promise<NativeTensor>
  tensorBinary(op: 'add' | 'mul', a: NativeTensor, b: NativeTensor): Promise<NativeTensor>
  tensorRmsNorm(x: NativeTensor, weight: NativeTensor, eps: number): Promise<NativeTensor>
  tensorSoftmax(x: NativeTensor, logarithm: boolean): Promise<NativeTensor>
  tensorGather(x: NativeTensor, indices: NativeTensor): Promise<NativeTensor>
  /** `axis` undefined: reduce all elements to a tensor of rank 0. */
  tensorReduce(op: 'sum' | 'mean' | 'max' | 'argmax', x: NativeTensor, axis: number | undefined): Promise<NativeTensor>
  tensorReshape(x: NativeTensor, shape: readonly number[]): Promise<NativeTensor>
  tensorSlice(x: NativeTensor, begin: readonly number[], end: readonly number[]): Promise<NativeTensor>
  tensorConcat(tensors: readonly NativeTensor[], axis: number): Promise<NativeTensor>
  tensorCast(x: NativeTensor, dtype: DType): Promise<NativeTensor>
  tensorTranspose(x: NativeTensor, axes: readonly number[]): Promise<NativeTensor>

  modelCreate(
    context: NativeContext,
    architecture: Architecture,
    dtype: DType,
    seed: number,
    quantization?: NativeQuantization,
  ): Promise<NativeModel>
  /**
   * @param dtype undefined: that of the files
   * @param quantized the files already hold codes and scales of that quantization
   * @param added parameters that the files do not have; they get their initial values from the architecture
   */
  modelLoad(
    context: NativeContext,
    architecture: Architecture,
    dtype: DType | undefined,
    paths: readonly string[],
    quantization: NativeQuantization | undefined,
    quantized: boolean,
    added: readonly string[],
  ): Promise<NativeModel>
  /** The same from files of another format. Without a dtype: bfloat16 if all matrices have it, else float32. */
  modelLoadTensors(
    context: NativeContext,
    architecture: Architecture,
    dtype: DType | undefined,
    files: readonly NativeTensorFile[],
    quantization: NativeQuantization | undefined,
    added: readonly string[],
  ): Promise<NativeModel>
  modelDType(model: NativeModel): ModelDType
  modelSave(model: NativeModel, path: string, dtype: 'F32' | 'BF16' | 'F64', dequantize: boolean, files: string): Promise<void>
  modelAddAdapter(
    model: NativeModel,
    options: { rank: number; alpha: number; modules: readonly string[]; perLoop: boolean; shiftRank: number; seed: number },
  ): Promise<{ name: string; shape: number[] }[]>
  modelRemoveAdapter(model: NativeModel): Promise<void>
  modelSaveAdapter(model: NativeModel, path: string, dtype: 'F32' | 'BF16' | 'F64', files: string): Promise<void>
  modelLoadAdapter(model: NativeModel, path: string): Promise<void>
  modelMerge(model: NativeModel): Promise<NativeModel>
  modelClone(model: NativeModel): Promise<NativeModel>
  modelCopyParameters(to: NativeModel, from: NativeModel): Promise<void>
  modelParameters(model: NativeModel): { name: string; shape: number[] }[]
  modelRead(model: NativeModel, name: string): Promise<RealArray>
  modelWrite(model: NativeModel, name: string, values: Float64Array): Promise<void>
  modelReadGradient(model: NativeModel, name: string): Promise<RealArray>
  /** Gradients of the trained parameters: the adapter's if the model has one. */
  modelReadGradients(model: NativeModel): Promise<{ name: string; values: RealArray }[]>
  modelZeroGradients(model: NativeModel): Promise<void>
  modelScore(
    model: NativeModel,
    sequences: NativeSequences,
    options: NativeLoops & {
      temperature: number
      lastLoop: boolean
      responsesOnly: boolean
      predictions: boolean
      /** How many of the most probable tokens to return for each prediction of the last loop. */
      top: number
    },
    cancel: Cancel,
  ): Promise<NativeScores>
  modelBackward(
    model: NativeModel,
    sequences: NativeSequences,
    coefficients: Float64Array,
    gateCoefficients: Float64Array,
    options: NativeLoops & { temperature: number; recompute: string },
    cancel: Cancel,
  ): Promise<RealArray>
  modelAccumulateLoss(
    model: NativeModel,
    sequences: NativeSequences,
    values: NativeLossValues,
    objective: NativeObjective,
    cancel: Cancel,
  ): Promise<Omit<LossMetrics, 'inputVectors'> & { inputVectors: RealArray }>
  modelResponseMeans(
    model: NativeModel,
    sequences: NativeSequences,
    options: { temperature: number; loops: number },
    cancel: Cancel,
  ): Promise<{ loops: number; logprobs: number[]; exitLoop: number[] }>
  modelEmbed(model: NativeModel, sequences: NativeSequences, loops: number, cancel: Cancel): Promise<RealArray[]>
  segmentReduce(op: 'sum' | 'mean' | 'count' | 'deviation', values: Float64Array, ids: Int32Array, count: number): number[]
  beliefReturns(rewards: BeliefRewards, logBelief: Float64Array, referenceLog: number, referenceLoop: number): number[]

  modelAccumulateLoopRpt(
    student: NativeModel,
    teacher: NativeModel,
    sequences: NativeSequences,
    draws: { ids: Int32Array; responses: Int32Array; mask: Int32Array; noise: Float64Array; exits: Int32Array },
    options: NativeLoopRptOptions,
    cancel: Cancel,
  ): Promise<NativeLoopRptMetrics>
  /** 16 digits. */
  modelChecksum(model: NativeModel): Promise<string>
  modelAccumulateStage2(
    model: NativeModel,
    sequences: NativeSequences,
    mask: Int32Array,
    tokens: number,
    tokensPerMicroBatch: number,
    cancel: Cancel,
  ): Promise<number>
  averageCreate(teacher: NativeModel, student: NativeModel): NativeAverage
  averageUpdate(average: NativeAverage, decay: number): Promise<void>
  averageSave(average: NativeAverage, path: string): Promise<void>
  averageLoad(average: NativeAverage, path: string): Promise<void>

  /** The first call allocates the memory, so that creating an optimizer never waits. */
  optimizerCreate(model: NativeModel, world?: NativeWorld): NativeOptimizer
  /** `exchanging`, `waiting`: seconds over all steps so far; 0 if only one process trains. */
  optimizerStep(
    optimizer: NativeOptimizer,
    options: NativeAdamWOptions,
  ): Promise<{ gradNorm: number; steps: number; exchanging: number; waiting: number; over: string }>
  optimizerExchangeDuringNext(optimizer: NativeOptimizer): Promise<void>
  optimizerSave(optimizer: NativeOptimizer, path: string): Promise<void>
  optimizerLoad(optimizer: NativeOptimizer, paths: readonly string[]): Promise<number>

  schedulerCreate(model: NativeModel, options: NativeSchedulerOptions): NativeScheduler
  /** Returns the request's number immediately. Runs serve it, even one that is already running. */
  schedulerAdd(scheduler: NativeScheduler, request: NativeGenerateRequest): number
  /**
   * Passes what a request's next draw waits for: bits of the tokens that may be drawn (bit v % 32 of word v / 32), or logits.
   * The other one is empty. It may be called early, and while the scheduler runs.
   */
  schedulerAnswer(scheduler: NativeScheduler, request: number, allowed: Int32Array, logits: Float64Array): void
  /** `keep`: keep its cache as if it had ended, if the request asked for that. */
  schedulerCancel(scheduler: NativeScheduler, request: number, keep: boolean): void
  /** Runs until no request is left, one has ended, there is a token, or all wait for answers. */
  schedulerRun(scheduler: NativeScheduler, until: 'idle' | 'finish' | 'token', cancel: Cancel): Promise<NativeGenerateEvent[]>
  schedulerStats(scheduler: NativeScheduler): SchedulerStats

  kernelLoopedBlockForward(
    hidden: NativeTensor,
    architecture: Architecture,
    /** One per parameter of the architecture except its embedding, in order, with the names for errors. */
    weights: readonly NativeTensor[],
    names: readonly string[],
    offsets: Int32Array,
  ): Promise<{ hidden: NativeTensor; gateLogits: NativeTensor }>
  kernelPerLoopLogSoftmax(
    hidden: NativeTensor,
    headWeight: NativeTensor,
    targets: NativeTensor,
    temperature: number,
  ): Promise<{ logprobs: NativeTensor; entropy: NativeTensor }>
  kernelPolicyGradientReduction(
    logprobs: NativeTensor,
    inputs: { weights: NativeTensor; advantages: NativeTensor; oldLogprobs: NativeTensor | undefined; mask: NativeTensor },
    objective: { surrogate: string; epsilonLow: number; epsilonHigh: number; dualClip: number; cap: number },
  ): Promise<NativeReduction>

  benchKernels(): string[]
  benchCreate(
    context: NativeContext,
    dtype: DType,
    kernel: string,
    shape: NativeKernelShape,
  ): Promise<{ handle: NativeHandle; flops: number; bytes: number }>
  /** Returns the total time of all runs in seconds. */
  benchRun(kernel: NativeHandle, repeats: number): Promise<number>

  /** The libraries of this machine. Opens libmpi for its version, and closes it again. */
  parallelLibraries(): { name: string; available: boolean; description: string }[]
  /**
   * Blocks until all processes have joined. `library`: solo, openmpi or mpich. After `timeout` seconds the process ends with
   * the message `late`. `messageBytes` 0: 2^30.
   */
  parallelOpen(library: string, options: { timeout: number; messageBytes: number; late: string }): NativeWorld
  parallelPlace(world: NativeWorld): { rank: number; size: number; localRank: number; description: string }
  parallelReduce(world: NativeWorld, operation: 'sum' | 'max', values: Float64Array): Promise<Float64Array>
  parallelGather(world: NativeWorld, bytes: Uint8Array): Promise<Uint8Array[]>
  parallelExchange(world: NativeWorld, parts: readonly Uint8Array[]): Promise<Uint8Array[]>
  parallelBroadcast(world: NativeWorld, root: number, bytes: Uint8Array): Promise<Uint8Array>
  parallelBarrier(world: NativeWorld): Promise<void>
  /** Bytes sent to other ranks so far. */
  parallelBytes(world: NativeWorld): number
  /** Whether no operation is running. */
  parallelIdle(world: NativeWorld): boolean
  /** Blocks until all ranks leave the world. */
  parallelClose(world: NativeWorld): void
  /** Ends all ranks, or only this process if there is no world. */
  parallelAbort(world: NativeWorld | undefined, message: string, status: number): never
}

let binding: NativeBinding | undefined
const contexts = new Map<string, NativeContext>()

/**
 * The addon. It is loaded on first use, so that importing looplm never fails.
 * @throws LoopLMError NATIVE_LOAD with cause and remedy
 */
export function native(): NativeBinding {
  binding ??= load()
  return binding
}

/** The executor and thread pool of a device and number of threads. It is kept until the environment ends. */
export function context(device: string, threads: number, operation: string): NativeContext {
  const key = `${device}/${threads}`
  let opened = contexts.get(key)
  if (opened === undefined) {
    try {
      opened = native().openContext(device, threads)
    } catch (error) {
      throw toLoopLMError(error, operation)
    }
    contexts.set(key, opened)
  }
  return opened
}

/** Runs one native call. Its errors become LoopLMError, and a signal sets its cancel flag. */
export async function call<T>(operation: string, run: (cancel: Cancel) => Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal?.aborted) throw aborted(operation, signal)
  const cancel = signal && native().createCancel()
  const unwatch = whenAborted(signal, () => cancel && native().cancel(cancel))
  try {
    return await run(cancel)
  } catch (error) {
    if (signal?.aborted && (error as { code?: unknown }).code === 'ABORTED') throw aborted(operation, signal)
    throw toLoopLMError(error, operation)
  } finally {
    unwatch()
  }
}

function aborted(operation: string, signal: AbortSignal): LoopLMError {
  return new LoopLMError('ABORTED', 'the operation was aborted by its AbortSignal', { operation, cause: signal.reason })
}

function load(): NativeBinding {
  const require = createRequire(import.meta.url)
  const root = packageRoot
  try {
    const nodeGypBuild = require('node-gyp-build') as (folder: string) => NativeBinding
    return nodeGypBuild(root)
  } catch (cause) {
    const reason = (cause as Error).message.trim()
    const message = [
      `the native engine could not be loaded for ${process.platform}-${process.arch}, Node ${process.version}: ${reason}`,
      ...(permissionRemedies(reason, root) ?? [
        ...loadRemedies(reason, libc()),
        `From a checkout: npm run build (in ${root}); it needs the packages cmake and g++.`,
      ]),
    ].join('\n  ')
    throw new LoopLMError('NATIVE_LOAD', message, { operation: 'looplm', cause })
  }
}

/** Remedies if Node itself forbids the addon. undefined if that is not the cause. */
function permissionRemedies(reason: string, root: string): string[] | undefined {
  const { permission } = process as { permission?: { has(scope: string, path?: string): boolean } }
  const disabled = /addons is disabled/.test(reason)
  if (permission !== undefined && (disabled || !permission.has('fs.read', root))) {
    return [
      `Node's permission model forbids it: add --allow-addons and --allow-fs-read=${join(root, '*')} to the options of node.`,
    ]
  }
  return disabled ? ['Node runs with --no-addons: remove it from the options of node and from NODE_OPTIONS.'] : undefined
}

/** The C library of this system, for example `glibc 2.36`. undefined if it has no name, as on macOS. */
export function libc(): string | undefined {
  if (process.platform !== 'linux') return undefined
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  return header?.glibcVersionRuntime === undefined ? 'musl' : `glibc ${header.glibcVersionRuntime}`
}

/**
 * Remedies for an error of the dynamic linker.
 *
 * @param reason why the addon was not loaded
 * @param system the C library of this system
 */
export function loadRemedies(reason: string, system: string | undefined): string[] {
  const glibc = /version [`'‘]?GLIBC_([\d.]+)/.exec(reason)?.[1]
  if (glibc !== undefined) {
    return [
      `The prebuilt engine needs glibc ${glibc} or newer, and this system has ${system}: use a newer system or build a checkout here.`,
    ]
  }
  const library = /(lib[^\s:/]+\.so[.\d]*): cannot open shared object file/.exec(reason)?.[1]
  if (library !== undefined) return [`The system library ${library} is missing: install the package that has it.`]
  if (/No native build was found|Cannot find module/.test(reason)) {
    const which = system === undefined ? '' : ` with ${system}`
    return [`The package has no prebuilt engine for this platform${which}, or it was installed without its prebuilds folder.`]
  }
  if (
    /invalid ELF header|file too short|wrong ELF class|slice is not valid|not a mach-o|incompatible architecture/i.test(reason)
  ) {
    return ['The prebuilt engine is damaged or for another processor: install the package again, on this machine.']
  }
  return ['Either the prebuilt engine does not fit this system, or something that it needs is missing.']
}
