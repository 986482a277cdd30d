import '../dispose.js'
import { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import { warnOfChanges } from '../files/folder-files.js'
import { type Architecture, parameterCount } from '../native/architecture.js'
import { call, context, type NativeModel, native, type Quantization } from '../native.js'
import { checkDevice } from '../tensor/devices.js'
import type { DeviceName } from '../tensor/types.js'
import { checkFlag, checkInstance, checkNumber, checkOptions, checkText, checkWord, describe } from '../validation/arguments.js'
import { type Adapter, adaptableModules, checkAdapter, type LoRAOptions, readAdapter, requireSameAdapter } from './adapter.js'
import { findFolder } from './checkpoint.js'
import { checkDType, packValues } from './checks.js'
import {
  architectureOf,
  checkFieldNames,
  configDifference,
  endTokens,
  type LoopLMConfig,
  type LoopLMConfigInput,
  parseConfig,
  withExitGateIf,
} from './config.js'
import { generate, stream } from './generation.js'
import { loadPretrained } from './load.js'
import { accumulateLoss } from './loss.js'
import { backwardOptions, createOptions, pretrainedOptions, saveOptions, schedulerOptions } from './options.js'
import { checkQuantization, engineQuantization } from './quantization.js'
import { saveAdapter, saveModel } from './save.js'
import { Scheduler } from './scheduler.js'
import {
  backward,
  embed,
  packForBackward,
  responseMeans,
  type ScoredForm,
  type ScoredSequences,
  score,
  scoredForm,
} from './score.js'
import { type GenerationConfig, namesEndTokens, withSpecialTokens } from './special-tokens.js'
import type {
  BackwardOptions,
  BackwardResult,
  CreateOptions,
  GenerateChunk,
  GenerateOptions,
  GenerateResult,
  LoadOptions,
  LossBatch,
  LossMetrics,
  LossObjective,
  ModelDType,
  ParameterInfo,
  PretrainedOptions,
  Prompt,
  RealArray,
  SaveOptions,
  SchedulerOptions,
  ScoreOptions,
  StateOptions,
  TokenSequence,
} from './types.js'

/**
 * A looped language model: L blocks that run T times over the same hidden state, an exit gate, and a head that can read any
 * loop (Ouro, arXiv 2510.25741). Every method that computes returns a promise and runs on the device's own thread. Calls on one
 * device run in the order in which you made them. On device `reference` every array of real numbers, in and out, is a
 * `Float64Array`.
 *
 * @example
 * ```ts
 * const config = { vocab_size: 96, hidden_size: 32, intermediate_size: 88, num_hidden_layers: 2, num_attention_heads: 4 }
 * using model = await LoopLM.create(config, { device: 'cpu', seed: 0 })
 * const scores = await model.score([[1, 2, 3]])
 * const [result] = await model.generate([[1, 2]], { maxNewTokens: 4, temperature: 0 })
 * ```
 */
export class LoopLM {
  /** The device that holds the weights and computes. */
  readonly device: DeviceName
  /** The dtype of the weights and of the computation. */
  readonly dtype: ModelDType
  /** Bits and group size of a quantized model, see {@link LoadOptions.quantize}. */
  readonly quantization: Quantization | undefined
  readonly #handle: NativeModel
  #named: { config: LoopLMConfig; generation: GenerationConfig } // without the fields that a tokenizer added
  #config: Readonly<LoopLMConfig>
  readonly #architecture: Architecture
  #generation: GenerationConfig
  readonly #code: ReadonlyMap<string, Uint8Array>
  readonly #threads: number
  #tokenizer: Tokenizer | undefined
  #adapter: Adapter | undefined
  #scored: { form: ScoredForm; ambiguous: boolean } | undefined // set by the newest call of score
  #scoring = 0 // number of running calls of score

  private constructor(handle: NativeModel, parts: ModelParts) {
    this.#handle = handle
    this.#config = parts.config
    this.#architecture = architectureOf(parts.config)
    this.device = parts.device
    this.dtype = parts.dtype
    this.quantization = parts.quantization
    this.#threads = parts.threads
    this.#generation = parts.generation
    this.#code = parts.code ?? new Map()
    this.#tokenizer = parts.tokenizer
    this.#adapter = parts.adapter
    this.#named = { config: parts.config, generation: parts.generation }
    if (parts.tokenizer !== undefined && !this.namesEndTokens) this.takeSpecialTokens(parts.tokenizer)
  }

  /**
   * Creates a model with random parameters: Normal(0, initializer_range) for matrices and the gate, ones for norms, zero for
   * the gate's bias.
   *
   * @param config at least vocab_size, hidden_size, intermediate_size, num_hidden_layers and num_attention_heads. Unknown
   *   fields are kept, unless their names look like misspelt known ones
   * @param options device, dtype, threads and seed
   * @throws LoopLMError INVALID_CONFIG naming each refused field, INVALID_ARGUMENT naming the option, UNSUPPORTED,
   *   OUT_OF_MEMORY, NATIVE_LOAD
   *
   * @example
   * ```ts
   * const sizes = { vocab_size: 96, hidden_size: 32, intermediate_size: 88, num_hidden_layers: 2, num_attention_heads: 4 }
   * const model = await LoopLM.create({ ...sizes, total_ut_steps: 4 }, { dtype: 'bfloat16', seed: 7 })
   * ```
   */
  static async create(config: LoopLMConfigInput, options: CreateOptions = {}): Promise<LoopLM> {
    const operation = 'LoopLM.create'
    checkOptions(options, createOptions, operation)
    checkFieldNames(config, operation)
    const { config: complete } = withExitGateIf(options.exitGate, parseConfig(config, operation, false), operation)
    const place = checkPlace(options, 'float32', operation)
    const seed = checkNumber(options.seed ?? 0, 'seed', { min: 0, integer: true }, operation)
    const on = context(place.device, place.threads, operation)
    const quantization = checkQuantization(options, operation)
    const engine = engineQuantization(quantization, options.activations, operation)
    const handle = await call(operation, () => native().modelCreate(on, architectureOf(complete), place.dtype, seed, engine))
    return new LoopLM(handle, { ...place, config: complete, quantization, generation: {}, tokenizer: undefined })
  }

  /**
   * Loads a Hugging Face checkpoint folder: config.json, model.safetensors (or its shards and model.safetensors.index.json),
   * generation_config.json and, if it exists, the tokenizer. Also loads a GGUF file of llama.cpp (families ouro and nanbeige)
   * with the tokenizer inside it. Its Q8_0 and Q4_0 matrices keep their codes (see {@link LoopLM.quantization}); other types
   * are converted to plain values.
   *
   * @param folder the checkpoint folder, or the name of a model on the Hugging Face Hub that was downloaded before; with
   *   `download: true` it is fetched. Or a GGUF file, or a folder that holds one and no safetensors
   * @param options device, dtype (default the files' own; others are converted, rounding to nearest) and threads
   * @throws LoopLMError NOT_FOUND, INVALID_FILE or INVALID_CONFIG naming the file and the field, INVALID_ARGUMENT naming the
   *   option, UNSUPPORTED, OUT_OF_MEMORY
   *
   * @example
   * ```ts
   * const model = await LoopLM.fromPretrained('checkpoints/ouro-1.4b', { dtype: 'bfloat16' })
   * ```
   */
  static async fromPretrained(folder: string, options: PretrainedOptions = {}): Promise<LoopLM> {
    const operation = 'LoopLM.fromPretrained'
    checkText(folder, 'folder', 'the path of a checkpoint folder', operation)
    checkPretrained(options, operation)
    const place = checkPlace(options, undefined, operation)
    const wished = checkQuantization(options, operation)
    const found = await findFolder(folder, options, operation)
    const { dequantize = false, exitGate, activations } = options
    const settings = { quantization: wished, dequantize, exitGate, activations }
    const { handle, ...parts } = await loadPretrained(found, place, settings, operation)
    return new LoopLM(handle, { ...place, ...parts })
  }

  /** The configuration with every default filled in. */
  get config(): Readonly<LoopLMConfig> {
    return this.#config
  }

  /**
   * The token ids that end generation unless `stop` is given: those of generation_config.json, else of config.json. If neither
   * names any, they are the tokenizer's end token and the token that ends a turn of its chat template.
   */
  get endTokens(): readonly number[] {
    const named = this.#generation.eos_token_id as number | number[] | null | undefined
    return named == null ? endTokens(this.#config) : [named].flat()
  }

  /**
   * Whether the configuration names end tokens. An empty list counts: generation then ends nowhere.
   * @internal
   */
  get namesEndTokens(): boolean {
    return namesEndTokens(this.#config, this.#generation)
  }

  /** What the model computes: its sizes, parameters and steps. */
  get architecture(): Architecture {
    return this.#architecture
  }

  /** The family that the configuration belongs to: `ouro`, `nanbeige`, `huginn_raven`, `retrofit` or `hrm_text`. */
  get family(): string {
    return this.#architecture.family
  }

  /**
   * The device, dtype and threads of the model, as options of {@link LoopLM.fromPretrained}.
   * @internal
   */
  get place(): Required<Pick<LoadOptions, 'device' | 'dtype'>> & Pick<LoadOptions, 'threads'> {
    const { device, dtype } = this
    return { device, dtype, ...(this.#threads === 0 ? {} : { threads: this.#threads }) }
  }

  /** Number of parameters. A tied head counts once. */
  get parameterCount(): number {
    return parameterCount(this.#architecture)
  }

  /**
   * The tokenizer of the checkpoint, or of the task or data that the model was trained on, or one that you assigned. It encodes
   * string prompts and is saved with the model. If the configuration names no end, begin or padding token, the model uses the
   * tokenizer's.
   */
  get tokenizer(): Tokenizer | undefined {
    return this.#tokenizer
  }

  set tokenizer(tokenizer: Tokenizer | undefined) {
    const operation = 'LoopLM.tokenizer'
    this.takeSpecialTokens(tokenizer === undefined ? undefined : fittingTokenizer(tokenizer, this.config, operation))
    this.#tokenizer = tokenizer
  }

  /**
   * Uses a tokenizer's special tokens for those that the configuration does not name.
   * @internal
   */
  takeSpecialTokens(tokenizer: Tokenizer | undefined): void {
    const named = this.#named
    const { config, generation } = tokenizer === undefined ? named : withSpecialTokens(named.config, named.generation, tokenizer)
    this.#config = config
    this.#generation = generation
  }

  /**
   * Writes a checkpoint that {@link LoopLM.fromPretrained} and Python load: config.json, generation_config.json,
   * model.safetensors and the tokenizer's files. A new folder appears complete or not at all. If the process is killed while it
   * replaces an existing folder, the folder holds the old model, the new one, or a state that loading rejects with
   * instructions. Files of the old model that the new one does not have, such as shards, an adapter, or a chat template, are
   * removed. Other files stay. A quantized model is saved with its codes and scales, which only looplm loads;
   * `dequantize: true` writes plain matrices instead.
   *
   * @param folder created if it does not exist
   * @param options.dtype dtype of the file, or of the parts that are not quantized; defaults to the model's
   * @param options.tokenizer saved with the model; defaults to {@link LoopLM.tokenizer}
   * @throws LoopLMError INVALID_FILE when the folder cannot be written, INVALID_ARGUMENT naming the argument or when the model
   *   has an adapter
   *
   * @example
   * ```ts
   * await model.save('my-model', { dtype: 'bfloat16', tokenizer: Tokenizer.bytes() })
   * ```
   */
  async save(folder: string, options: SaveOptions = {}): Promise<void> {
    const operation = 'LoopLM.save'
    checkText(folder, 'folder', 'the path of a folder', operation)
    checkOptions(options, saveOptions, operation)
    const handle = this.handle(operation)
    if (this.#adapter !== undefined) {
      const message =
        'the model has an adapter: save the adapter with saveAdapter(folder), or the merged model with (await mergeAdapter()).save(folder)'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const dtype = this.#fileDType(options, operation)
    const dequantize = checkFlag(options.dequantize ?? false, 'dequantize', operation)
    const tokenizer =
      options.tokenizer === undefined ? this.#tokenizer : fittingTokenizer(options.tokenizer, this.config, operation)
    const { config, quantization } = this
    const described = { config, quantization, generation: this.#generation, code: this.#code, tokenizer: tokenizer?.files() }
    await saveModel(handle, folder, described, { dtype, dequantize }, operation)
  }

  /**
   * Scores sequences: computes, after every loop, the log-probability of each token given the tokens before it. The results of
   * a sequence do not depend on the rest of the batch.
   *
   * @param sequences at least one, each of at least two token ids
   * @returns per sequence, arrays of T × (len-1) and T × len, row-major by loop; NaN where the parameters or the states
   *   overflow
   * @throws LoopLMError INVALID_ARGUMENT naming the argument, ABORTED
   *
   * @example
   * ```ts
   * const { loops, logprobs } = await model.score([[5, 3, 8, 1]])
   * const lastLoop = logprobs[0].subarray((loops - 1) * 3) // log P of tokens 3, 8 and 1
   * ```
   */
  async score(sequences: readonly TokenSequence[], options: ScoreOptions = {}): Promise<ScoredSequences> {
    const operation = 'LoopLM.score'
    const form = scoredForm(this, sequences, options, operation)
    this.#scored = { form, ambiguous: this.#scoring > 0 }
    this.#scoring++
    try {
      return await score(this, form, options, operation)
    } finally {
      this.#scoring--
    }
  }

  /**
   * Accumulates the gradient of any loss L of the log-probabilities, given ∂L/∂ℓ. Score first, differentiate your loss,
   * then pass its coefficients. The sequences, temperature and loops are those of the last {@link LoopLM.score}. If several
   * calls of it ran at the same time, use {@link ScoredSequences.backward}. Gradients accumulate until
   * {@link LoopLM.zeroGradients} or an optimizer's step. A call that fails or is aborted may have accumulated a part of its
   * gradients. Call `zeroGradients` before you make it again.
   *
   * @param coefficients per sequence T × (len-1), row-major by loop: ∂L/∂(log-probability)
   * @param options.gateCoefficients per sequence T × len: ∂L/∂(gate logit)
   * @returns the gradients of the sequences' `inputVectors`
   * @throws LoopLMError INVALID_SHAPE, NON_FINITE, ABORTED; INVALID_ARGUMENT when several calls of `score` ran at the same time
   *
   * @example
   * ```ts
   * const { logprobs } = await model.score(sequences)
   * await model.backward(logprobs.map((l) => l.map(() => -1 / l.length))) // the loss is the mean negative log-probability
   * ```
   */
  backward(coefficients: readonly ArrayLike<number>[], options?: BackwardOptions): Promise<BackwardResult>
  /**
   * The same, but you pass the scored sequences again.
   *
   * @param sequences the sequences that were scored
   * @param coefficients per sequence T × (len-1), row-major by loop: ∂L/∂(log-probability)
   * @param options.gateCoefficients per sequence T × len: ∂L/∂(gate logit)
   * @throws LoopLMError INVALID_SHAPE, NON_FINITE, ABORTED
   */
  backward(
    sequences: readonly TokenSequence[],
    coefficients: readonly ArrayLike<number>[],
    options?: BackwardOptions,
  ): Promise<BackwardResult>
  async backward(
    first: readonly ArrayLike<number>[],
    second?: readonly ArrayLike<number>[] | BackwardOptions,
    third?: BackwardOptions,
  ): Promise<BackwardResult> {
    const operation = 'LoopLM.backward'
    this.handle(operation)
    if (Array.isArray(second)) {
      const given = third === undefined ? {} : third
      const form = packForBackward(this, first as readonly TokenSequence[], given, operation)
      return backward(this, form, second, given, operation)
    }
    const given = second === undefined ? {} : (second as BackwardOptions)
    checkOptions(given, backwardOptions, operation)
    if (this.#scored === undefined) {
      const message = 'call score first, or pass the sequences: backward(sequences, coefficients)'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    if (this.#scored.ambiguous) {
      const message =
        'several calls of score overlapped, so it is unclear which one these coefficients belong to: call backward on what score ' +
        'returned, const scored = await model.score(sequences); await scored.backward(coefficients)'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    return backward(this, this.#scored.form, first, given, operation)
  }

  /**
   * Samples a continuation of every prompt. Equal prompts run once and share their cache. Finished sequences leave the batch,
   * and tokens exit as soon as their exit rule holds. If `stop` contains strings, other calls on the model can run between two
   * tokens. Prompts that do not fit in the free memory wait until others have ended; this does not change the tokens.
   *
   * @param prompts token ids, or strings if the model has a tokenizer; repeat a prompt for several samples
   * @returns one result per prompt; the same seed and index give the same tokens, independent of the rest of the batch
   * @throws LoopLMError INVALID_ARGUMENT naming the argument, NON_FINITE naming position and loop of a token whose
   *   log-probability is not finite, OUT_OF_MEMORY when one prompt with its new tokens does not fit alone, ABORTED
   *
   * @example
   * ```ts
   * const [result] = await model.generate(['12+30='], { maxNewTokens: 8, temperature: 0, stop: ['\n'] })
   * ```
   */
  async generate(prompts: readonly Prompt[], options: GenerateOptions = {}): Promise<GenerateResult[]> {
    return generate(this, this.handle('LoopLM.generate'), prompts, options)
  }

  /**
   * Like {@link LoopLM.generate} for one prompt, token by token. Breaking out of the loop ends the generation. Other calls on
   * the model can run between two tokens.
   *
   * @example
   * ```ts
   * for await (const { text } of model.stream('12+30=', { maxNewTokens: 8 })) process.stdout.write(text ?? '')
   * ```
   */
  stream(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<GenerateChunk, void, undefined> {
    return stream(this, () => this.handle('LoopLM.stream'), prompt, options)
  }

  /**
   * Creates a scheduler for generation with continuous batching, as a server needs it: requests can enter while others run.
   *
   * @param options limits for concurrent requests, cache size and loops
   * @throws LoopLMError INVALID_ARGUMENT naming the option
   *
   * @example
   * ```ts
   * using scheduler = model.scheduler({ maxRows: 32, maxTokens: 65_536 })
   * const request = scheduler.add('12+30=', { maxNewTokens: 8 })
   * for await (const { text } of request) process.stdout.write(text ?? '')
   * ```
   */
  scheduler(options: SchedulerOptions = {}): Scheduler {
    const operation = 'LoopLM.scheduler'
    checkOptions(options, schedulerOptions, operation)
    return new Scheduler(this, this.handle(operation), operation, options)
  }

  /** The model's adapter, if it has one. */
  get adapter(): Adapter | undefined {
    return this.#adapter
  }

  /**
   * Gives the model a low-rank adapter (LoRA, Hu et al., arXiv 2106.09685): every target projection W x becomes W x + (alpha /
   * rank) · B A x, with the same A and B in every loop, or with `perLoop` a pair for each of the model's loops. `shiftRank`
   * adds Shift-FFN. A is uniform in ±1/√in and B is zero, so the output does not change at first. The model's own parameters
   * are frozen: gradients and optimizers only cover the adapter. Previously accumulated gradients are discarded.
   *
   * @throws LoopLMError INVALID_ARGUMENT naming the option, or if the model already has an adapter
   *
   * @example
   * ```ts
   * await model.addAdapter({ rank: 8, alpha: 16, targetModules: ['q_proj', 'v_proj'] })
   * await new PretrainTrainer(model, { learningRate: 1e-4 }).update({ sequences })
   * await model.saveAdapter('adapters/mine')
   * ```
   */
  async addAdapter(options: LoRAOptions = {}): Promise<void> {
    const operation = 'LoopLM.addAdapter'
    const { modules, seed, ...rest } = checkAdapter(options, operation, adaptableModules(this.#architecture))
    const handle = this.handle(operation)
    const parameters = await call(operation, () => native().modelAddAdapter(handle, { ...rest, modules, seed }))
    this.#adapter = { ...rest, targetModules: modules, parameters }
  }

  /** Removes the adapter. The model is what it was before, and all its parameters can be trained again. */
  async removeAdapter(): Promise<void> {
    const handle = this.handle('LoopLM.removeAdapter')
    await call('LoopLM.removeAdapter', () => native().modelRemoveAdapter(handle))
    this.#adapter = undefined
  }

  /**
   * Writes adapter_config.json and adapter_model.safetensors as PEFT does; Python loads them with
   * `PeftModel.from_pretrained(base, folder)`.
   *
   * @param folder created if it does not exist; see {@link LoopLM.save}
   * @param options.dtype dtype of the file; defaults to the model's
   * @throws LoopLMError INVALID_ARGUMENT if there is no adapter, INVALID_FILE when the folder cannot be written
   */
  async saveAdapter(folder: string, options: Pick<SaveOptions, 'dtype'> = {}): Promise<void> {
    const operation = 'LoopLM.saveAdapter'
    checkText(folder, 'folder', 'the path of a folder', operation)
    checkOptions(options, { dtype: true }, operation)
    const handle = this.handle(operation)
    const adapter = this.#adapter
    if (adapter === undefined) throw new LoopLMError('INVALID_ARGUMENT', 'the model has no adapter', { operation })
    await saveAdapter(handle, folder, adapter, this.#fileDType(options, operation), operation)
  }

  /**
   * Loads an adapter that {@link LoopLM.saveAdapter} or PEFT wrote. If the model has an adapter of the same rank, alpha and
   * modules, it keeps that adapter and loads the file's values; the state of its optimizer stays valid. Dropout that the
   * adapter was trained with is not applied.
   *
   * @param folder with adapter_config.json and adapter_model.safetensors
   * @throws LoopLMError NOT_FOUND or INVALID_FILE naming file and field, also for adapters other than plain LoRA; the model
   *   then stays unchanged
   *
   * @example
   * ```ts
   * await model.loadAdapter('adapters/mine')
   * const merged = await model.mergeAdapter()
   * ```
   */
  async loadAdapter(folder: string): Promise<void> {
    const operation = 'LoopLM.loadAdapter'
    checkText(folder, 'folder', 'the path of a folder with an adapter', operation)
    const { modules: targetModules, weights, seed, ...rest } = await readAdapter(folder, this.config, operation)
    const own = this.#adapter
    if (own !== undefined) requireSameAdapter(own, { ...rest, targetModules }, folder, operation)
    else await this.addAdapter({ ...rest, targetModules })
    const handle = this.handle(operation)
    try {
      await call(operation, () => native().modelLoadAdapter(handle, weights))
      await warnOfChanges(folder, weights)
    } catch (error) {
      if (own === undefined) await this.removeAdapter()
      throw error
    }
  }

  /**
   * Returns a new model whose matrices are W + (alpha / rank) · B A. It has no adapter and is as fast as the base. This model
   * does not change.
   *
   * @returns the merged model; a copy if this model has no adapter
   * @throws LoopLMError UNSUPPORTED if the adapter has `perLoop` or `shiftRank`, which no single matrix can represent
   */
  async mergeAdapter(): Promise<LoopLM> {
    const handle = this.handle('LoopLM.mergeAdapter')
    return this.#copy(await call('LoopLM.mergeAdapter', () => native().modelMerge(handle)), undefined)
  }

  /** The names (Hugging Face's) and shapes of all parameters, without an adapter's. Matrices are [out, in]. */
  parameters(): ParameterInfo[] {
    return native().modelParameters(this.handle('LoopLM.parameters'))
  }

  /**
   * Returns a copy of one parameter's values.
   * @throws LoopLMError NOT_FOUND for an unknown name
   */
  async getParameter(name: string): Promise<RealArray> {
    const handle = this.handle('LoopLM.getParameter')
    return call('LoopLM.getParameter', () => native().modelRead(handle, name))
  }

  /**
   * Overwrites one parameter. A bfloat16 model rounds to nearest.
   *
   * @throws LoopLMError NOT_FOUND, INVALID_SHAPE, NON_FINITE, also for values outside the range of the model's dtype
   */
  async setParameter(name: string, values: ArrayLike<number>): Promise<void> {
    const operation = 'LoopLM.setParameter'
    const handle = this.handle(operation)
    const packed = parameterValues(this.#parameter(name, operation), values, this.dtype, operation)
    await call(operation, () => native().modelWrite(handle, name, packed))
  }

  /**
   * Returns one parameter's accumulated gradient, or zeros if there is none yet.
   * @throws LoopLMError NOT_FOUND for an unknown name
   */
  async gradient(name: string): Promise<RealArray> {
    const handle = this.handle('LoopLM.gradient')
    return call('LoopLM.gradient', () => native().modelReadGradient(handle, name))
  }

  /** Returns the accumulated gradient of every trained parameter by name: all parameters, or only the adapter's. */
  async gradients(): Promise<Map<string, RealArray>> {
    const handle = this.handle('LoopLM.gradients')
    const gradients = await call('LoopLM.gradients', () => native().modelReadGradients(handle))
    return new Map(gradients.map(({ name, values }) => [name, values]))
  }

  /** Clears the accumulated gradients, also the part that a failed or aborted `backward` has left. */
  async zeroGradients(): Promise<void> {
    const handle = this.handle('LoopLM.zeroGradients')
    await call('LoopLM.zeroGradients', () => native().modelZeroGradients(handle))
  }

  /**
   * Returns another model with the same parameters, adapter, tokenizer and device, for example a frozen reference or a teacher.
   */
  async clone(): Promise<LoopLM> {
    const handle = this.handle('LoopLM.clone')
    return this.#copy(await call('LoopLM.clone', () => native().modelClone(handle)), this.#adapter)
  }

  /**
   * Overwrites every parameter with those of another model of the same configuration, dtype and device.
   * @throws LoopLMError INVALID_ARGUMENT
   */
  async copyParametersFrom(other: LoopLM): Promise<void> {
    const operation = 'LoopLM.copyParametersFrom'
    checkInstance(other, 'other', LoopLM, 'LoopLM.create and LoopLM.fromPretrained resolve to', operation)
    const [to, from] = [this.handle(operation), other.handle(operation)]
    const difference = configDifference(this.config, other.config) ?? placeDifference(this.place, other.place)
    if (difference !== undefined) throw new LoopLMError('INVALID_ARGUMENT', `other: ${difference}`, { operation })
    await call(operation, () => native().modelCopyParameters(to, from))
  }

  /**
   * Scores whole responses loop by loop. Returns means over their tokens instead of one value per token.
   *
   * @param sequences at least one, each of at least two token ids
   * @param options.promptLengths per sequence, how many of its tokens are prompt; defaults to 1 each
   * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field, ABORTED
   *
   * @example
   * ```ts
   * const { logprobs } = await model.responseMeans([[5, 3, 8, 1]], { promptLengths: [2] })
   * const belief = logprobs[0]!.map(Math.exp) // how likely the answer [8, 1] is after each loop
   * ```
   */
  async responseMeans(
    sequences: readonly TokenSequence[],
    options: Pick<ScoreOptions, 'promptLengths' | 'temperature' | 'loops' | 'inputVectors' | keyof StateOptions | 'signal'> = {},
  ): Promise<{
    /** Per sequence T values: the mean log P of the response tokens after each loop. */
    logprobs: number[][]
    /** Per sequence the mean of Σ t·p_t over the response tokens; loops t are counted from 1. */
    exitLoop: number[]
  }> {
    return responseMeans(this, sequences, options)
  }

  /**
   * One vector per sequence: the mean of the last loop's states over the response tokens, or over all tokens without
   * `promptLengths`. Similar texts have similar vectors.
   *
   * @param sequences at least one, each of at least one token id (two with `promptLengths`)
   * @param options.promptLengths per sequence, how many of its tokens are prompt, which the mean does not include
   * @returns `hidden_size` numbers per sequence
   * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field, ABORTED
   *
   * @example
   * ```ts
   * const [a, b] = await model.embed([[1, 2, 3], [1, 2, 4]])
   * let dot = 0
   * for (let k = 0; k < a!.length; k++) dot += a![k]! * b![k]!
   * ```
   */
  async embed(
    sequences: readonly TokenSequence[],
    options: Pick<ScoreOptions, 'promptLengths' | 'loops' | 'inputVectors' | keyof StateOptions | 'signal'> = {},
  ): Promise<RealArray[]> {
    return embed(this, sequences, options)
  }

  /**
   * Accumulates the gradient of a trainer's loss. Every objective uses this one core (math.md §2), a thin layer over the
   * engine.
   * @internal
   */
  async accumulateLoss(
    batch: LossBatch,
    objective: LossObjective,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<LossMetrics> {
    return accumulateLoss(this, this.handle('LoopLM.accumulateLoss'), batch, objective, options.signal)
  }

  /** Frees the model's memory once all earlier calls have ended. Later calls throw DISPOSED. */
  dispose(): void {
    this.#handle.dispose()
  }

  /** `using model = …` disposes the model at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /**
   * The engine's object.
   * @throws LoopLMError DISPOSED
   * @internal
   */
  handle(operation: string): NativeModel {
    if (!this.#handle.disposed) return this.#handle
    throw new LoopLMError('DISPOSED', 'the model was disposed', { operation })
  }

  #copy(handle: NativeModel, adapter: Adapter | undefined): LoopLM {
    const { config, device, dtype } = this
    const place = { config, device, dtype, threads: this.#threads }
    const described = { generation: this.#generation, code: this.#code, tokenizer: this.#tokenizer, adapter }
    const copy = new LoopLM(handle, { ...place, ...described })
    copy.#named = this.#named
    return copy
  }

  #fileDType(options: SaveOptions, operation: string): ModelDType {
    const dtypes = (['float32', 'bfloat16', 'float64'] as const).filter((word) => word !== 'float64' || this.dtype === word)
    return checkWord(options.dtype ?? this.dtype, 'dtype', dtypes, operation)
  }

  #parameter(name: string, operation: string): ParameterInfo {
    const found = [...this.parameters(), ...(this.#adapter?.parameters ?? [])].find((parameter) => parameter.name === name)
    if (found !== undefined) return found
    throw new LoopLMError('NOT_FOUND', `the model has no parameter ${describe(name)}; parameters() lists them`, { operation })
  }
}

interface Place {
  device: DeviceName
  dtype: ModelDType
  threads: number
}

interface ModelParts extends Place {
  config: LoopLMConfig
  quantization?: Quantization | undefined
  generation: GenerationConfig
  code?: ReadonlyMap<string, Uint8Array>
  tokenizer: Tokenizer | undefined
  adapter?: Adapter | undefined
}

/** The largest finite values of the dtypes. */
const largest = { float32: (2 - 2 ** -23) * 2 ** 127, bfloat16: (2 - 2 ** -7) * 2 ** 127, float64: Number.MAX_VALUE } as const

/** The first difference in device, dtype or threads between two models, as words for an error. */
function placeDifference(own: LoopLM['place'], other: LoopLM['place']): string | undefined {
  const field = (['device', 'dtype'] as const).find((field) => own[field] !== other[field])
  if (field !== undefined) return `${field} is ${other[field]}, but the model's is ${own[field]}`
  return own.threads === other.threads ? undefined : 'threads differ'
}

/** Checks that the model's vocabulary holds all ids of the tokenizer. */
function fittingTokenizer(tokenizer: Tokenizer, { vocab_size }: LoopLMConfig, operation: string): Tokenizer {
  checkInstance(tokenizer, 'tokenizer', Tokenizer, 'Tokenizer.fromPretrained resolves to, or undefined', operation)
  if (tokenizer.vocabSize <= vocab_size) return tokenizer
  const message = `the tokenizer has ${tokenizer.vocabSize} ids, the model's vocab_size is ${vocab_size}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/** Checks the shape of a parameter's values and that its dtype can represent them. */
function parameterValues(
  { name, shape }: ParameterInfo,
  values: ArrayLike<number>,
  dtype: ModelDType,
  operation: string,
): Float64Array {
  const length = shape.reduce((product, n) => product * n, 1)
  const packed = packValues([values], name, () => [{ shape: `[${shape.join(', ')}]`, length }], 1, operation)
  const at = packed.findIndex((value) => Math.abs(value) > largest[dtype])
  if (at === -1) return packed
  const message = `${name} holds ${packed[at]} (entry ${at} of all); the largest value of ${dtype} is ${largest[dtype]}`
  throw new LoopLMError('NON_FINITE', message, { operation })
}

function checkPlace<Fallback extends ModelDType | undefined>(
  options: LoadOptions,
  fallback: Fallback,
  operation: string,
): Omit<Place, 'dtype'> & { dtype: ModelDType | Fallback } {
  const device = checkDevice(options.device, operation)
  const threads =
    options.threads === undefined ? 0 : checkNumber(options.threads, 'threads', { min: 1, max: 1024, integer: true }, operation)
  return { device, dtype: checkDType(options.dtype, device, fallback, operation), threads }
}

function checkPretrained(options: PretrainedOptions, operation: string): void {
  checkOptions(options, pretrainedOptions, operation)
  if (options.download !== undefined) checkFlag(options.download, 'download', operation)
  if (options.dequantize !== undefined && checkFlag(options.dequantize, 'dequantize', operation) && options.quantize)
    throw new LoopLMError('INVALID_ARGUMENT', 'dequantize and quantize contradict each other: give one of them', { operation })
  if (options.revision !== undefined) checkText(options.revision, 'revision', 'a branch, tag or commit', operation)
  if (options.cacheDir !== undefined) checkText(options.cacheDir, 'cacheDir', 'the path of a folder', operation)
}
