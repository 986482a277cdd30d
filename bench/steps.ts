// Whole steps, each in a separate process, so that its peak memory can be measured: node dist/bench/steps.js NAME [DEVICE]
// prints one JSON line.
import { execFileSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { fileURLToPath } from 'node:url'
import { addition, type DeviceName, LoopLM, LoopRPTTrainer, memory, PretrainTrainer, RLTTTrainer } from '../src/index.js'
import type { CacheType, ModelDType, Recompute } from '../src/model/types.js'
import { measureRoofs, onGpu, prepareRoofs, type Roofs, tinySizes } from './kernels.js'
import { type Config, d96, d128, d512, d768, d1536, ouro } from './models.js'

/** The result of a step. `share` is relative to the named roof. */
export interface StepRow {
  step: string
  dtype: ModelDType
  seconds: number
  tokensPerSecond: number
  share?: number
  roof?: string
  /** Peak resident memory of the process in MiB, or of the device's buffers on a GPU, before the roofs are measured. */
  peakMiB: number
  /** 99th percentile of the event loop's delay beyond its interval, in ms. */
  eventLoopDelayMs?: number
}

/** Number of weights of all blocks, and of the head. */
function weights(c: Config): { blocks: number; head: number } {
  return {
    blocks: c.num_hidden_layers * (4 * c.hidden_size ** 2 + 3 * c.hidden_size * c.intermediate_size),
    head: c.hidden_size * c.vocab_size,
  }
}

const device = (process.argv[3] ?? 'cpu') as DeviceName
const peakMiB = () => Math.round(onGpu(device) ? memory().peak / 2 ** 20 : process.resourceUsage().maxRSS / 1024)
const middle = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!
async function seconds(run: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await run()
  return (performance.now() - start) / 1000
}

/** Whether to run again: until there are five runs and `least` seconds, but half a minute is enough for fewer runs. */
function goesOn(times: readonly number[], least: number): boolean {
  const total = times.reduce((a, b) => a + b, 0)
  return times.length < 5 ? total < 30 : total < least
}

/** Alternates between two variants, seven runs of each. Returns the median rates, and the speed-up of `other`. */
async function byTurns(plain: () => Promise<number>, other: () => Promise<number>) {
  const [first, second, times]: number[][] = [[], [], []]
  for (let i = 0; i < 7; i++) {
    first!.push(await plain())
    second!.push(await other())
    times!.push(second!.at(-1)! / first!.at(-1)!)
  }
  return { plain: middle(first!), other: middle(second!), times: middle(times!) }
}

/** Synthetic text: `count` sequences of `length` tokens. */
const texts = (config: Config, count: number, length: number) =>
  Array.from({ length: count }, (_, i) =>
    Array.from({ length }, (_, j) => (i * 7919 + j * 104729 + ((i * j) % 31)) % config.vocab_size),
  )
/** Multiply-adds of a Stage I step: a forward pass of the blocks and the head, and twice that for the backward pass. */
const stage1Work = (c: Config, tokens: number) => 3 * (weights(c).blocks + weights(c).head) * c.total_ut_steps * tokens

async function stage1(step: string, config: Config, count: number, length: number): Promise<StepRow> {
  const model = await LoopLM.create(config, { device, seed: 1 })
  const trainer = new PretrainTrainer(model, { learningRate: 1e-5 })
  const batch = { sequences: texts(config, count, length) }
  await trainer.update(batch)
  const times: number[] = []
  for (let i = 0; i < 3; i++) times.push(await seconds(() => trainer.update(batch)))
  const taken = middle(times)
  const gflops = (2 * stage1Work(config, count * length)) / taken / 1e9
  const peak = peakMiB()
  const roofs = await measureRoofs(device, 'float32')
  return {
    step,
    dtype: 'float32',
    seconds: taken,
    tokensPerSecond: (count * length) / taken,
    share: gflops / roofs.gflops,
    roof: `GEMM ${roofs.gflops.toFixed(0)} GFLOP/s`,
    peakMiB: peak,
  }
}

/**
 * LoopRPT with 8 rollouts compared with a Stage I step on the same sequences. The roof is the time of the 28 forward passes
 * that it consists of (teacher 1, clean pass 3, rollouts 3 each) with the head's rows that it needs, at the rate of that step.
 * Peak memory is that of a separate process.
 */
async function looprpt(step: string, config: Config, count: number, length: number): Promise<StepRow> {
  // Measured first, because on Linux a child's peak includes the parent's.
  const file = fileURLToPath(import.meta.url)
  const alone = execFileSync(process.execPath, [file, `Stage I update ${step.split('update ')[1]}`, device], { encoding: 'utf8' })
  const { peakMiB: stage1Peak } = JSON.parse(alone) as StepRow
  const sequences = texts(config, count, length)
  const trainer = new LoopRPTTrainer(await LoopLM.create(config, { device, seed: 1 }), { learningRate: 1e-5, rollouts: 8 })
  const times = [await seconds(() => trainer.update({ sequences }))]
  const peak = peakMiB()
  const beside = new PretrainTrainer(await LoopLM.create(config, { device, seed: 1 }), { learningRate: 1e-5 })
  const stage1Times = [await seconds(() => beside.update({ sequences }))]
  const rounds = Math.ceil(8 / times[0]!)
  for (let i = 0; i < rounds; i++) {
    stage1Times.push(await seconds(() => beside.update({ sequences })))
    times.push(await seconds(() => trainer.update({ sequences })))
    stage1Times.push(await seconds(() => beside.update({ sequences })))
  }
  for (const warmUp of [times, stage1Times]) warmUp.shift()
  const taken = middle(times)
  const tokens = count * (length - 1)
  const { blocks, head } = weights(config)
  const T = config.total_ut_steps
  const hard = count * Math.ceil(0.2 * (length - 1))
  const needed = 28 * blocks * T * tokens + head * (tokens + T * hard + 27 * T * hard)
  const rate = stage1Work(config, tokens) / middle(stage1Times)
  return {
    step,
    dtype: 'float32',
    seconds: taken,
    tokensPerSecond: (count * length) / taken,
    share: needed / rate / taken,
    roof: `28 forwards at ${((2 * rate) / 1e9).toFixed(0)} GFLOP/s; Stage I ${stage1Peak} MiB`,
    peakMiB: peak,
  }
}

/** `adapter`: its rank, if the model's own parameters are frozen. */
async function rltt(
  step: string,
  config: Config,
  count: number,
  length: number,
  dtype: ModelDType,
  recompute: Recompute = 'none',
  adapter?: number,
): Promise<StepRow> {
  const model = await LoopLM.create(config, { device, dtype, seed: 1 })
  if (adapter !== undefined) await model.addAdapter({ rank: adapter })
  const trainer = new RLTTTrainer(model, { weights: 'exit-pdf', learningRate: 1e-5, recompute })
  const sequences = texts(config, count, length)
  const batch = { sequences, promptLengths: sequences.map(() => 1), advantages: sequences.map((_, i) => (i % 2 ? 1 : -1)) }
  await trainer.update(batch)
  const delay = monitorEventLoopDelay({ resolution: 5 })
  delay.enable()
  const times: number[] = []
  while (goesOn(times, 3)) times.push(await seconds(() => trainer.update(batch)))
  delay.disable()
  const peak = peakMiB()
  const taken = middle(times)
  const tokens = count * length
  const { blocks, head } = weights(config)
  const operations = adapter === undefined ? 6 : 4 // per weight and token; frozen weights have no gradient
  const gflops = (operations * (blocks + head) * config.total_ut_steps * tokens) / taken / 1e9
  const roofs = await measureRoofs(device, dtype)
  return {
    step,
    dtype,
    seconds: taken,
    tokensPerSecond: tokens / taken,
    share: gflops / roofs.gflops,
    roof: `GEMM ${roofs.gflops.toFixed(0)} GFLOP/s`,
    peakMiB: peak,
    eventLoopDelayMs: Math.max(0, delay.percentile(99) / 1e6 - 5),
  }
}

async function sampling(step: string, prompts: number, group: number): Promise<StepRow> {
  const model = await LoopLM.create(d128, { device, seed: 1 })
  const prefixes = Array.from({ length: prompts }, (_, i) =>
    Array.from({ length: 16 }, (_, j) => (i * 31 + j * 17 + i * j) % 128),
  )
  const batch = prefixes.flatMap((text) => Array<number[]>(group).fill(text))
  const run = (seed: number) => model.generate(batch, { maxNewTokens: 24, temperature: 1, seed, stop: [] })
  await run(0)
  const times: number[] = []
  while (goesOn(times, 0)) times.push(await seconds(() => run(1 + times.length)))
  const taken = middle(times)
  return { step, dtype: 'float32', seconds: taken, tokensPerSecond: (batch.length * 24) / taken, peakMiB: peakMiB() }
}

interface DecodeOptions {
  config: Config
  rows?: number
  tokens?: number
  quantize?: 'int8' | 'int4'
  /**
   * Cumulative exit probability at which a token exits. A random model's gates give about one half per loop, so 0.6 means two
   * loops.
   */
  threshold?: number
  speculate?: { loops: number; tokens: number }
}

/**
 * Decoding: every new token reads the blocks once per loop and the head once; the rows of a batch share the reads. Timed from
 * the moment when every row has its first token until the first row ends, so that prompts do not count and all rows are active.
 * The machine's read bandwidth is measured after every run, since it changes with other work; the share is the median over the
 * runs.
 */
async function decode(
  step: string,
  { config, rows = 1, tokens = 24, quantize, threshold = 1, speculate }: DecodeOptions,
): Promise<StepRow> {
  const model = await LoopLM.create(config, { device, dtype: 'bfloat16', seed: 1, ...(quantize ? { quantize } : {}) })
  const options = {
    maxNewTokens: tokens,
    temperature: 0,
    stop: [],
    exit: { rule: 'gate', threshold },
    ...(speculate ? { speculate } : {}),
  } as const
  const run = async () => {
    using scheduler = model.scheduler({ maxRows: rows })
    let [begun, begin, end, made, loops] = [0, 0, 0, 0, 0]
    const generate = async (i: number) => {
      let own = 0
      for await (const { loop } of scheduler.add([1 + i, 2, 3, 4, 5, 6, 7, 8], options)) {
        own++
        if (own === 1 && ++begun === rows) begin = performance.now()
        else if (begin > 0 && end === 0) {
          made++
          loops += loop
          if (own === tokens) end = performance.now()
        }
      }
    }
    await Promise.all(Array.from({ length: rows }, (_, i) => generate(i)))
    return { rate: made / ((end - begin) / 1000), meanLoops: loops / made }
  }
  await run()
  const peak = peakMiB()
  const { blocks, head } = weights(config)
  const bytes = quantize === undefined ? 2 : (quantize === 'int8' ? 1 : 0.5) + 4 / 64
  const rates: number[] = []
  const roofs: Roofs[] = []
  const shares: number[] = []
  let meanLoops = 0
  const machine = await prepareRoofs(device, 'bfloat16')
  for (let i = 0; i < 7; i++) {
    const measured = await run()
    const roof = await machine.measure(60)
    meanLoops = measured.meanLoops
    rates.push(measured.rate)
    roofs.push(roof)
    shares.push((measured.rate * bytes * (blocks * meanLoops + head)) / 1e9 / roof.readGbps)
  }
  machine.dispose()
  const rate = middle(rates)
  const memoryRate = (kind: 'gbps' | 'readGbps') => middle(roofs.map((roof) => roof[kind])).toFixed(0)
  return {
    step,
    dtype: 'bfloat16',
    seconds: rows / rate,
    tokensPerSecond: rate,
    ...(speculate === undefined && rows === 1
      ? {
          share: middle(shares),
          roof: `reading ${memoryRate('readGbps')} GB/s (copying ${memoryRate('gbps')}); ${meanLoops.toFixed(2)} loops`,
        }
      : { roof: `${meanLoops.toFixed(2)} loops` }),
    peakMiB: peak,
  }
}

/**
 * Wavefront decoding compared with plain decoding of one sequence, alternating. `share` scales what the blocks add to a state,
 * so that loops after the first change it little. 1 is a random model, whose readouts only agree by chance. The roof is plain
 * decoding, and the share is the speed-up.
 */
async function wavefront(step: string, config: Config, share: number, tokens = 96): Promise<StepRow> {
  const model = await LoopLM.create(config, { device, dtype: 'bfloat16', seed: 1 })
  for (const { name, shape } of model.parameters())
    if (name.endsWith('layernorm_2.weight')) await model.setParameter(name, new Float64Array(shape[0]!).fill(share))
  const run = async (speculate: 'wavefront' | 'off') => {
    using scheduler = model.scheduler({ maxRows: 1 })
    const options = { maxNewTokens: tokens, temperature: 0, stop: [], exit: { rule: 'fixed' }, speculate } as const
    let [begin, end] = [0, 0]
    for await (const _ of scheduler.add([1, 2, 3, 4, 5, 6, 7, 8], options)) {
      end = performance.now()
      if (begin === 0) begin = end
    }
    return { rate: (tokens - 1) / ((end - begin) / 1000), stats: scheduler.stats() }
  }
  await run('off')
  const peak = peakMiB()
  let { stats } = await run('wavefront')
  const rates = await byTurns(
    async () => (await run('off')).rate,
    async () => {
      const measured = await run('wavefront')
      stats = measured.stats
      return measured.rate
    },
  )
  const { drafted, accepted, passes, passRows } = stats
  const kept = `${accepted} of ${drafted} drafts kept, ${(passRows / passes).toFixed(2)} rows a pass`
  return {
    step,
    dtype: 'bfloat16',
    seconds: 1 / rates.other,
    tokensPerSecond: rates.other,
    share: rates.times,
    roof: `plain decoding ${rates.plain.toFixed(1)} tokens/s; ${kept}`,
    peakMiB: peak,
  }
}

/**
 * Decoding after a long prompt with a quantized cache compared with one in bfloat16, alternating. The prompt runs once for
 * each; later requests find it in the cache. The roof is the bfloat16 cache, and the share is the speed-up.
 */
async function cached(step: string, config: Config, context: number, cacheType: CacheType, tokens = 16): Promise<StepRow> {
  const model = await LoopLM.create(config, { device, dtype: 'bfloat16', seed: 1 })
  const prompt = Array.from({ length: context - tokens }, (_, j) => (j * 7919) % config.vocab_size)
  const prepare = async (type: CacheType) => {
    const before = memory().bytes
    const scheduler = model.scheduler({ maxRows: 1, maxTokens: context, cacheType: type, promptCache: true })
    const run = async () => {
      let [begin, end] = [0, 0]
      const options = { maxNewTokens: tokens, temperature: 0, stop: [], exit: { rule: 'fixed' } } as const
      for await (const _ of scheduler.add(prompt, options)) {
        end = performance.now()
        if (begin === 0) begin = end
      }
      return (tokens - 1) / ((end - begin) / 1000)
    }
    await run()
    return { run, mib: (memory().bytes - before) / 2 ** 20 }
  }
  const plain = await prepare('model')
  const coded = await prepare(cacheType)
  const peak = peakMiB()
  const rates = await byTurns(plain.run, coded.run)
  const sizes = `${coded.mib.toFixed(0)} of ${plain.mib.toFixed(0)} MiB`
  return {
    step,
    dtype: 'bfloat16',
    seconds: 1 / rates.other,
    tokensPerSecond: rates.other,
    share: rates.times,
    roof: `cache in bfloat16 ${rates.plain.toFixed(1)} tokens/s; ${sizes}`,
    peakMiB: peak,
  }
}

async function prefill(step: string, config: Config, length: number, quantize?: 'int8' | 'int4'): Promise<StepRow> {
  const model = await LoopLM.create(config, { device, dtype: 'bfloat16', seed: 1, ...(quantize ? { quantize } : {}) })
  const prompt = Array.from({ length }, (_, j) => (j * 7919) % config.vocab_size)
  const run = () => model.generate([prompt], { maxNewTokens: 1, temperature: 0, stop: [] })
  await run()
  const times: number[] = []
  while (goesOn(times, 0)) times.push(await seconds(run))
  const taken = middle(times)
  const peak = peakMiB()
  const roofs = await measureRoofs(device, 'bfloat16')
  const { blocks, head } = weights(config)
  const gflops = (2 * (blocks * config.total_ut_steps * length + head)) / taken / 1e9
  return {
    step,
    dtype: 'bfloat16',
    seconds: taken,
    tokensPerSecond: length / taken,
    ...(quantize === undefined || roofs.int8Gops === 0
      ? { share: gflops / roofs.gflops, roof: `GEMM ${roofs.gflops.toFixed(0)} GFLOP/s` }
      : { share: gflops / roofs.int8Gops, roof: `products of bytes ${roofs.int8Gops.toFixed(0)} GOP/s` }),
    peakMiB: peak,
  }
}

/** Loading a folder whose files are in memory, compared with reading the same file through one buffer. */
async function load(step: string, config: Config): Promise<StepRow> {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-bench-'))
  try {
    const source = await LoopLM.create(config, { device, dtype: 'bfloat16', seed: 1 })
    await source.save(folder)
    source.dispose()
    const path = join(folder, 'model.safetensors')
    const { size } = statSync(path)
    const read = async () => {
      const file = openSync(path, 'r')
      const buffer = Buffer.allocUnsafe(2 ** 20)
      while (readSync(file, buffer) > 0);
      closeSync(file)
    }
    await read()
    const times: number[] = []
    const reads: number[] = []
    for (let i = 0; i < 5; i++) {
      reads.push(await seconds(read))
      times.push(await seconds(async () => (await LoopLM.fromPretrained(folder, { device })).dispose()))
    }
    const taken = middle(times)
    const rate = (time: number) => `${(size / time / 1e9).toFixed(1)} GB/s`
    const roof = `${rate(taken)} of reading the file at ${rate(middle(reads))}`
    return { step, dtype: 'bfloat16', seconds: taken, tokensPerSecond: 0, share: middle(reads) / taken, roof, peakMiB: peakMiB() }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Drawing all parameters. */
async function create(step: string, config: Config): Promise<StepRow> {
  const taken = await seconds(async () => (await LoopLM.create(config, { device, dtype: 'bfloat16', seed: 1 })).dispose())
  const { blocks, head } = weights(config)
  const roof = `${((blocks + 2 * head) / taken / 1e6).toFixed(0)} million numbers a second`
  return { step, dtype: 'bfloat16', seconds: taken, tokensPerSecond: 0, roof, peakMiB: peakMiB() }
}

async function addition5(step: string): Promise<StepRow> {
  const model = await LoopLM.create(d96, { device, seed: 1 })
  const task = addition({ digits: 5 })
  // An untrained model never gets a reward, and its groups would be skipped as flat. Rewarding an odd last digit keeps almost
  // every group active.
  const reward = (_prompt: string, completion: string) => Number('13579'.includes(completion.at(-1) ?? '+'))
  const trainer = new RLTTTrainer(model, { task, reward, promptsPerStep: 32, groupSize: 8, steps: 200, learningRate: 2e-4 })
  const delay = monitorEventLoopDelay({ resolution: 5 })
  delay.enable()
  let tokens = 0
  const taken = await seconds(async () => {
    for await (const event of trainer.run()) if (event.type === 'step') tokens += 32 * 8 * 6
  })
  delay.disable()
  return {
    step,
    dtype: 'float32',
    seconds: taken,
    tokensPerSecond: tokens / taken,
    peakMiB: peakMiB(),
    eventLoopDelayMs: Math.max(0, delay.percentile(99) / 1e6 - 5),
  }
}

type Steps = Record<string, (name: string) => Promise<StepRow>>

const cpuSteps: Steps = {
  'RLTT update D 512, 4 × 512': (name) => rltt(name, d512, 4, 512, 'float32'),
  'RLTT update D 512, 4 × 512, recompute layer': (name) => rltt(name, d512, 4, 512, 'float32', 'layer'),
  'RLTT update D 512, 4 × 512, bfloat16': (name) => rltt(name, d512, 4, 512, 'bfloat16'),
  'RLTT update D 128, 64 × 64': (name) => rltt(name, d128, 64, 64, 'float32'),
  'Stage I update D 512, 4 × 512': (name) => stage1(name, d512, 4, 512),
  'LoopRPT update D 512, 4 × 512': (name) => looprpt(name, d512, 4, 512),
  'Stage I update D 512, 1 × 2048': (name) => stage1(name, d512, 1, 2048),
  'LoopRPT update D 512, 1 × 2048': (name) => looprpt(name, d512, 1, 2048),
  'Stage I update D 128, 64 × 64': (name) => stage1(name, d128, 64, 64),
  'LoopRPT update D 128, 64 × 64': (name) => looprpt(name, d128, 64, 64),
  'sampling 64 prompts × 8, 16 + 24 tokens': (name) => sampling(name, 64, 8),
  'sampling 512 prompts, 16 + 24 tokens': (name) => sampling(name, 512, 1),
  'decode batch 1, 98 M parameters, bfloat16': (name) => decode(name, { config: d768 }),
  'decode batch 16, 98 M parameters, bfloat16': (name) => decode(name, { config: d768, rows: 16, tokens: 48 }),
  'decode batch 1, 98 M parameters, int8': (name) => decode(name, { config: d768, quantize: 'int8' }),
  'decode batch 1, 98 M parameters, int4': (name) => decode(name, { config: d768, quantize: 'int4' }),
  'decode batch 16, 98 M parameters, int4': (name) => decode(name, { config: d768, rows: 16, tokens: 48, quantize: 'int4' }),
  'decode batch 1, 98 M parameters, exits': (name) => decode(name, { config: d768, threshold: 0.6 }),
  'decode batch 1, 98 M parameters, speculation 2 loops × 4': (name) =>
    decode(name, { config: d768, speculate: { loops: 2, tokens: 4 } }),
  'wavefront batch 1, 98 M parameters, readouts that settle early': (name) => wavefront(name, d768, 0.002),
  'wavefront batch 1, 98 M parameters, readouts that do not': (name) => wavefront(name, d768, 1),
  'cache in int8, 4096 tokens, 98 M parameters': (name) => cached(name, d768, 4096, 'int8'),
  'cache in int4, 4096 tokens, 98 M parameters': (name) => cached(name, d768, 4096, 'int4'),
  'cache of residuals, 4096 tokens, 98 M parameters': (name) => cached(name, d768, 4096, 'residual'),
  'cache with pruned keys, 4096 tokens, 98 M parameters': (name) => cached(name, d768, 4096, 'spark'),
  'decode batch 16, 98 M parameters, exits': (name) => decode(name, { config: d768, rows: 16, tokens: 48, threshold: 0.6 }),
  'decode batch 1, 500 M parameters, bfloat16': (name) => decode(name, { config: d1536, tokens: 12 }),
  'decode batch 1, 500 M parameters, int4': (name) => decode(name, { config: d1536, tokens: 16, quantize: 'int4' }),
  'prefill of 512 tokens, 98 M parameters, bfloat16': (name) => prefill(name, d768, 512),
  'prefill of 512 tokens, 98 M parameters, int8': (name) => prefill(name, d768, 512, 'int8'),
  'prefill of 512 tokens, 98 M parameters, int4': (name) => prefill(name, d768, 512, 'int4'),
  'load 500 M parameters, bfloat16': (name) => load(name, d1536),
  'RLTT on Add(5), 200 steps of 32 × 8': addition5,
  'create 1.4 B parameters, bfloat16': (name) => create(name, ouro),
  'load 1.4 B parameters, bfloat16': (name) => load(name, ouro),
  'decode batch 1, 1.4 B parameters, bfloat16': (name) => decode(name, { config: ouro, tokens: 6 }),
  'decode batch 1, 1.4 B parameters, int4': (name) => decode(name, { config: ouro, tokens: 10, quantize: 'int4' }),
  'prefill of 128 tokens, 1.4 B parameters, bfloat16': (name) => prefill(name, ouro, 128),
  'prefill of 128 tokens, 1.4 B parameters, int4': (name) => prefill(name, ouro, 128, 'int4'),
  'RLTT update of an adapter, 1.4 B parameters, 2 × 128, bfloat16, recompute layer': (name) =>
    rltt(name, ouro, 2, 128, 'bfloat16', 'layer', 16),
}

/** On a GPU: Ouro-1.4B. With tiny sizes: a model of a few thousand parameters, only to see that it runs. */
function gpuSteps(tiny: boolean): Steps {
  const small = { ...ouro, vocab_size: 64, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 1, num_attention_heads: 2 }
  const [model, config, rows, length] = tiny ? ['tiny', small, 2, 8] : ['Ouro-1.4B', ouro, 4, 4096]
  const tokens = tiny ? 3 : 64
  return {
    [`RLTT update ${model}, ${rows} × ${length}, bfloat16, recompute layer`]: (name) =>
      rltt(name, config, rows, length, 'bfloat16', 'layer'),
    [`decode batch 1, ${model}, bfloat16`]: (name) => decode(name, { config, tokens }),
    [`decode batch 16, ${model}, bfloat16`]: (name) => decode(name, { config, rows: tiny ? 2 : 16, tokens }),
    [`decode batch 1, ${model}, exits`]: (name) => decode(name, { config, tokens, threshold: 0.6 }),
    [`decode batch 1, ${model}, int4`]: (name) => decode(name, { config, tokens, quantize: 'int4' }),
    [`wavefront batch 1, ${model}, readouts that settle early`]: (name) => wavefront(name, config, 0.002, tokens),
    [`prefill of ${length / 2} tokens, ${model}, bfloat16`]: (name) => prefill(name, config, length / 2),
  }
}

/** Rows that take minutes and up to 6 GB. They only run if --filter names them. */
export const large = '1.4 B'

/** Every row of a device by name. */
export const stepsOn = (device: string): Steps =>
  tinySizes(device)
    ? { ...gpuSteps(true), 'sampling 4 prompts × 2, 16 + 24 tokens': (name) => sampling(name, 4, 2) }
    : onGpu(device)
      ? gpuSteps(false)
      : cpuSteps

const wanted = process.argv[2]
if (process.argv[1]?.endsWith('steps.js') && wanted !== undefined) {
  const run = stepsOn(device)[wanted]
  if (run === undefined) throw new Error(`no step "${wanted}"; there are: ${Object.keys(stepsOn(device)).join('; ')}`)
  process.stdout.write(`${JSON.stringify(await run(wanted))}\n`)
}
