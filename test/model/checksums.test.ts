// Damage to what looplm saved is seen: a flipped bit anywhere is an error, a warning, or has no effect on what is loaded.
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Random } from '../../src/data/random.js'
import { AdamW, LoopLM, LoopLMError, LoopRPTTrainer, RLTTTrainer } from '../../src/index.js'
import { withoutChecksums, xxh64 } from '../checksums.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyConfig, tinyTask, variedReward } from '../tiny.js'

const random = new Random(14)
const options = { task: tinyTask, batchSize: 4, rollouts: 2, learningRate: 0.01, onWarning() {} }
const root = await mkdtemp(join(tmpdir(), 'looplm-checksums-'))
const saved = join(root, 'saved')
const quantized = join(root, 'quantized')
const adapter = join(root, 'adapter')
const run = join(root, 'run')
const warnings = vi.spyOn(process, 'emitWarning')

beforeAll(async () => {
  using model = await LoopLM.create(tinyConfig, { seed: 1, threads: 1 })
  model.tokenizer = tinyTask.tokenizer
  await model.save(saved)
  await model.addAdapter({ rank: 2, targetModules: ['q_proj', 'down_proj'] })
  for (const { name, shape } of model.adapter!.parameters)
    await model.setParameter(
      name,
      Float32Array.from({ length: shape[0]! * shape[1]! }, (_, i) => Math.sin(i)),
    )
  await model.saveAdapter(adapter)
  const sizes = { ...tinyConfig, hidden_size: 64, intermediate_size: 96 }
  using small = await LoopLM.create(sizes, { quantize: 'int4', groupSize: 32, threads: 1 })
  await small.save(quantized)
  using student = await LoopLM.create(tinyConfig, { seed: 1, threads: 1 })
  using trainer = new LoopRPTTrainer(student, { ...options, runDir: run, steps: 2, saveEvery: 1 })
  for await (const _ of trainer.run());
})
afterAll(async () => {
  warnings.mockRestore()
  await rm(root, { recursive: true, force: true })
})

/** Reads a folder that has damage; what it returns is compared with what the whole folder gives. */
type Read = (folder: string) => Promise<unknown>

const loadModel: Read = async (folder) => {
  using model = await LoopLM.fromPretrained(folder, { threads: 1 })
  const { logprobs } = await model.score([[1, 2, 3, 4]])
  return [model.config, model.endTokens, model.tokenizer?.fingerprint, model.tokenizer?.config, logprobs]
}
const loadAdapter: Read = async (folder) => {
  using model = await LoopLM.create(tinyConfig, { seed: 1, threads: 1 })
  await model.loadAdapter(folder)
  return (await model.score([[1, 2, 3, 4]])).logprobs
}
const resume: Read = async (folder) => {
  using model = await LoopLM.create(tinyConfig, { seed: 5, threads: 1 })
  using trainer = new LoopRPTTrainer(model, { ...options, resume: folder, steps: 3, evalEvery: 3, evalProblems: 4 })
  const seen: unknown[] = []
  for await (const { type, step, metrics } of trainer.run()) seen.push([type, step, metrics.loss, metrics.num_tokens])
  return [seen, await parametersOf(model), trainer.step]
}

/** Whether damage to a file was an error of looplm, a warning, or of no effect. */
async function damage(from: string, file: string, change: (bytes: Buffer) => Uint8Array, read: Read, truth: unknown) {
  const folder = join(root, 'damaged', 'step-2')
  await rm(folder, { recursive: true, force: true })
  await cp(from, folder, { recursive: true })
  await writeFile(join(folder, file), change(await readFile(join(folder, file))))
  warnings.mockClear()
  warnings.mockImplementation(() => {})
  const results = await Promise.allSettled([read(folder)])
  const warned = warnings.mock.calls.some(([message]) => String(message).includes(`${file} changed after`))
  warnings.mockReset()
  const [result] = results
  if (result.status === 'rejected') {
    expect(result.reason, `${file}: ${result.reason.message}`).toBeInstanceOf(LoopLMError)
    return 'error'
  }
  if (warned) return 'warning'
  expect(result.value, file).toEqual(truth)
  return 'nothing'
}

const flip = (bit: number) => (bytes: Buffer) => {
  bytes[bit >> 3]! ^= 1 << (bit & 7)
  return bytes
}

/** Flips bits of every file of a folder at random places, as often in the header of weights as in their data. */
async function flipAll(
  from: string,
  read: Read,
  times: number,
  except: readonly string[] = [],
): Promise<Map<string, Record<string, number>>> {
  const truth = await read(from)
  const found = new Map<string, Record<string, number>>()
  for (const file of (await readdir(from)).filter((name) => !except.includes(name)).sort()) {
    const outcomes: Record<string, number> = { error: 0, warning: 0, nothing: 0 }
    const bytes = await readFile(join(from, file))
    const header = file.endsWith('.safetensors') ? 8 + Number(bytes.readBigUInt64LE(0)) : 0
    for (let i = 0; i < times; i++) {
      const [begin, end] = i < times / 2 && header > 0 ? [0, header] : [header, bytes.length]
      const bit = 8 * begin + Math.floor(random.uniform() * 8 * (end - begin))
      outcomes[await damage(from, file, flip(bit), read, truth)]!++
    }
    found.set(file, outcomes)
  }
  return found
}

describe('a flipped bit', { timeout: 240_000 }, () => {
  it.each<[string, string, Read]>([
    ['a saved model', saved, loadModel],
    ['a quantized model', quantized, loadModel],
    ['an adapter', adapter, loadAdapter],
  ])('is detected in %s', async (_, folder, read) => {
    const settings = ['generation_config.json', 'tokenizer_config.json'] // people edit them: they have no checksum
    for (const [file, outcomes] of await flipAll(folder, read, 40, settings)) {
      const weights = file.endsWith('.safetensors')
      if (weights) expect(outcomes.warning, file).toBe(0)
      // the header's checksum cannot tell of a flip in its own name: 12 bytes of some thousand
      expect(outcomes.nothing, `${file} ${JSON.stringify(outcomes)}`).toBeLessThanOrEqual(weights ? 2 : 0)
    }
  })

  it('is detected in a checkpoint of a run, or has no effect on the run', async () => {
    const found = await flipAll(join(run, 'checkpoints', 'step-2'), resume, 20)
    expect([...found.keys()]).toEqual(
      expect.arrayContaining(['optimizer.safetensors', 'teacher.safetensors', 'trainer_state.json']),
    )
    for (const file of ['model.safetensors', 'optimizer.safetensors', 'teacher.safetensors', 'trainer_state.json'])
      expect(found.get(file)!.error, file).toBeGreaterThanOrEqual(18)
  })

  it('is reported with tensor name and advice in the data of weights', async () => {
    const bytes = await readFile(join(saved, 'model.safetensors'))
    const begin = 8 + Number(bytes.readBigUInt64LE(0))
    const header = JSON.parse(bytes.toString('utf8', 8, begin))
    const folder = join(root, 'named')
    await cp(saved, folder, { recursive: true })
    for (const [name, { data_offsets }] of Object.entries<{ data_offsets: [number, number] }>(header)) {
      if (name === '__metadata__') continue
      await writeFile(join(folder, 'model.safetensors'), flip(8 * (begin + data_offsets[0]))(Buffer.from(bytes)))
      const error = await refusal(() => LoopLM.fromPretrained(folder))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toContain(`model.safetensors: tensor "${name}": its bytes have the checksum`)
      expect(error.message).toContain('the file is damaged. Restore it from a copy')
    }
  })

  it('is reported for the first of several damaged tensors, with any number of threads', async () => {
    const bytes = await readFile(join(saved, 'model.safetensors'))
    const begin = 8 + Number(bytes.readBigUInt64LE(0))
    using model = await LoopLM.create(tinyConfig, { threads: 1 })
    const names = model.parameters().map(({ name }) => name)
    const header = JSON.parse(bytes.toString('utf8', 8, begin))
    const damaged = names.slice(2, 9)
    const all = damaged.reduce<Buffer>((file, name) => flip(8 * (begin + header[name].data_offsets[0]))(file), Buffer.from(bytes))
    const folder = join(root, 'several')
    await cp(saved, folder, { recursive: true })
    await writeFile(join(folder, 'model.safetensors'), all)
    for (const threads of [1, 2, 5, 5, 5]) {
      const error = await refusal(() => LoopLM.fromPretrained(folder, { threads }))
      expect(error.message).toContain(`tensor "${damaged[0]}"`)
    }
  })
})

describe('mixed or damaged files of a checkpoint', () => {
  const mix = async (file: string) => {
    const folder = join(await mkdtemp(join(root, 'mixed-')), 'step-2')
    await cp(join(run, 'checkpoints', 'step-2'), folder, { recursive: true })
    await cp(join(run, 'checkpoints', 'step-1', file), join(folder, file))
    return folder
  }

  it.each(['model.safetensors', 'optimizer.safetensors', 'teacher.safetensors'])(
    'are rejected on resume: %s of an earlier step',
    async (file) => {
      const error = await refusal(async () => resume(await mix(file)))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toMatch(
        new RegExp(
          `${file} has the checksum [\\da-f]{16}, .*trainer_state.json says [\\da-f]{16}; the file is damaged or of another`,
        ),
      )
    },
  )

  it('are rejected on resume: an earlier state, or a model saved there later', async () => {
    expect((await refusal(async () => resume(await mix('trainer_state.json')))).message).toMatch(
      /step: is 1 in the folder of step 2/,
    )
    const folder = await mix('config.json')
    using model = await LoopLM.create(tinyConfig, { seed: 8 })
    await model.save(folder)
    expect((await refusal(() => resume(folder))).message).toMatch(/model\.safetensors has the checksum .* of another checkpoint/)
  })

  it('are rejected on resume: a file that was cut or has no checksum', async () => {
    const folder = await mix('config.json')
    const path = join(folder, 'optimizer.safetensors')
    const bytes = await readFile(path)
    for (const length of [0, 7, 100, bytes.length - 1]) {
      await writeFile(path, bytes.subarray(0, length))
      expect((await refusal(() => resume(folder))).message).toContain('optimizer.safetensors')
    }
    const state = await readFile(join(folder, 'trainer_state.json'))
    await writeFile(path, bytes)
    await withoutChecksums(folder)
    await writeFile(join(folder, 'trainer_state.json'), state)
    expect((await refusal(() => resume(folder))).message).toMatch(
      /model\.safetensors has no checksum|optimizer\.safetensors has no checksum/,
    )
  })

  it('leave run, model and trainer unchanged when they are rejected', async () => {
    const runDir = join(root, 'refused-run')
    await cp(run, runDir, { recursive: true })
    const files = join(runDir, 'checkpoints')
    await cp(join(files, 'step-1', 'optimizer.safetensors'), join(files, 'step-2', 'optimizer.safetensors'))
    const metrics = await readFile(join(runDir, 'metrics.jsonl'), 'utf8')
    using model = await LoopLM.create(tinyConfig, { seed: 5 })
    const before = await parametersOf(model)
    using trainer = new LoopRPTTrainer(model, { ...options, runDir, resume: true, steps: 3 })
    const { message } = await refusal(async () => {
      for await (const _ of trainer.run());
    })
    expect(message).toMatch(/optimizer\.safetensors has the checksum/)
    expect(await readFile(join(runDir, 'metrics.jsonl'), 'utf8')).toBe(metrics)
    expect(await parametersOf(model)).toEqual(before)
    using twin = await LoopLM.create(tinyConfig, { seed: 5 })
    using other = new LoopRPTTrainer(twin, options)
    const batch = { sequences: [[1, 2, 3]] }
    expect((await trainer.update(batch)).loss).toBe((await other.update(batch)).loss)
    expect(await parametersOf(model)).toEqual(await parametersOf(twin))
  })

  it('are rejected on resume: a damaged reference model', async () => {
    const runDir = join(root, 'reference-run')
    const make = (model: LoopLM, steps: number) =>
      new RLTTTrainer(model, {
        ...{ task: tinyTask, reward: variedReward, groupSize: 2, promptsPerStep: 2, beta: 0.05, onWarning() {} },
        ...{ runDir, steps, resume: true },
      })
    using model = await LoopLM.create(tinyConfig, { seed: 1 })
    using first = make(model, 1)
    for await (const _ of first.run());
    const path = join(runDir, 'reference', 'model.safetensors')
    const bytes = await readFile(path)
    await writeFile(path, flip(8 * bytes.length - 20)(bytes))
    using again = await LoopLM.create(tinyConfig, { seed: 1 })
    using second = make(again, 2)
    const error = await refusal(async () => {
      for await (const _ of second.run());
    })
    expect(error.message).toMatch(/reference\/model\.safetensors: tensor .*the file is damaged/)
  })
})

describe('files without checksums', () => {
  it('load without a warning from other tools and from an earlier version', async () => {
    const folder = join(root, 'others')
    await cp(saved, folder, { recursive: true })
    await withoutChecksums(folder)
    warnings.mockClear()
    expect(await loadModel(folder)).toEqual(await loadModel(saved))
    const before = join(root, 'before', 'step-2')
    await cp(join(run, 'checkpoints', 'step-2'), before, { recursive: true })
    await withoutChecksums(before)
    expect(await resume(before)).toEqual(await resume(join(run, 'checkpoints', 'step-2')))
    expect(warnings).not.toHaveBeenCalled()
  })
})

it('checksums are XXH64 of each tensor, and of the header with zeros in their place', async () => {
  for (const path of [join(saved, 'model.safetensors'), join(adapter, 'adapter_model.safetensors')]) {
    const bytes = await readFile(path)
    const begin = 8 + Number(bytes.readBigUInt64LE(0))
    const text = bytes.toString('utf8', 8, begin)
    const { __metadata__, ...tensors } = JSON.parse(text)
    const own = __metadata__['looplm.xxh64']
    expect(own).toBe(xxh64(Buffer.from(text.replace(own, '0'.repeat(16)))))
    const spans = Object.values<{ data_offsets: [number, number] }>(tensors).map(({ data_offsets }) => data_offsets)
    const sums = spans.sort((a, b) => a[0] - b[0]).map(([from, to]) => xxh64(bytes.subarray(begin + from, begin + to)))
    expect(__metadata__['looplm.xxh64.tensors']).toBe(sums.join(' '))
  }
})

describe('an edited file beside the weights', () => {
  it('causes one warning with its name per load, until the folder is saved again', async () => {
    const folder = join(root, 'edited')
    await cp(saved, folder, { recursive: true })
    const path = join(folder, 'config.json')
    await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), rope_theta: 5000 }))
    await rm(join(folder, 'tokenizer.json'))
    for (const settings of ['generation_config.json', 'tokenizer_config.json']) await writeFile(join(folder, settings), '{}')
    warnings.mockClear()
    warnings.mockImplementation(() => {})
    using model = await LoopLM.fromPretrained(folder)
    expect(model.config.rope_theta).toBe(5000)
    expect(warnings.mock.calls.map(([message]) => message)).toEqual([
      expect.stringMatching(/edited: config\.json, tokenizer\.json changed after the folder was saved/),
    ])
    await model.save(folder)
    using _ = await LoopLM.fromPretrained(folder)
    expect(warnings).toHaveBeenCalledTimes(1)
    warnings.mockReset()
  })

  it('is an error if it is the state of a trainer', async () => {
    const folder = join(root, 'state', 'step-2')
    await cp(join(run, 'checkpoints', 'step-2'), folder, { recursive: true })
    const path = join(folder, 'trainer_state.json')
    const state = JSON.parse(await readFile(path, 'utf8'))
    for (const change of [
      { tokens: state.tokens + 1 },
      { skippedUpdates: 1 },
      { stalled: 1 },
      { files: {} },
      { format: 2, checksum: undefined },
    ]) {
      await writeFile(path, JSON.stringify({ ...state, ...change }))
      const error = await refusal(() => resume(folder))
      expect(error.message).toMatch(
        /trainer_state\.json: checksum: is not that of the other fields; the file is damaged or was edited/,
      )
    }
    await writeFile(path, JSON.stringify(state)) // other white space
    await resume(folder)
  })
})

it('the checksum of an optimizer state is also verified outside a run', async () => {
  using model = await LoopLM.create(tinyConfig, { seed: 1 })
  using optimizer = new AdamW(model)
  await model.score([[1, 2, 3]])
  await model.backward([new Float32Array(6).fill(-1)])
  await optimizer.step()
  const path = join(root, 'own.safetensors')
  await optimizer.save(path)
  const bytes = await readFile(path)
  await optimizer.load(path)
  for (let i = 0; i < 60; i++) {
    const bit = Math.floor(random.uniform() * 8 * bytes.length)
    await writeFile(path, flip(bit)(Buffer.from(bytes)))
    const at = bytes.indexOf('looplm.xxh64')
    if (bit >> 3 >= at && bit >> 3 < at + 12) continue // the name of the checksum: the others hold
    expect((await refusal(() => optimizer.load(path))).code).toBe('INVALID_FILE')
  }
  expect(optimizer.steps).toBe(1)
})
