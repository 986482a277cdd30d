// What a save leaves of the folder that it writes into: nothing that describes another model, everything that is the user's.
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { addition, LoopLM, PretrainTrainer, Tokenizer } from '../../src/index.js'
import { runProgram } from '../cli/program.js'
import { refusal } from '../refusal.js'
import { readTensors, writeTensors } from '../stored-tensors.js'
import { parametersOf, tinyConfig, tinyTask } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-save-over-'))
})
afterAll(() => rm(root, { recursive: true }))

const make = (seed: number, more: object = {}) => LoopLM.create({ ...tinyConfig, ...more }, { seed, threads: 1 })
const namesIn = async (folder: string) => (await readdir(folder)).sort()
const bare = ['config.json', 'generation_config.json', 'model.safetensors']
const withTokenizer = [...bare, 'tokenizer.json', 'tokenizer_config.json']

/** Files of models and tokenizers, as transformers, PEFT and others name them. */
const described = [
  ...[
    'pytorch_model.bin',
    'pytorch_model-00001-of-00002.bin',
    'pytorch_model-00002-of-00002.bin',
    'pytorch_model.bin.index.json',
  ],
  ...['model.fp16.safetensors', 'model-00001-of-00002.safetensors', 'model.safetensors.index.json', 'consolidated.00.pth'],
  ...['tf_model.h5', 'flax_model.msgpack', 'consolidated.safetensors'],
  ...['adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'],
  ...['quantize_config.json', 'quant_config.json', 'hf_quant_config.json'],
  ...['tokenizer.model', 'vocab.json', 'merges.txt', 'vocab.txt', 'special_tokens_map.json', 'added_tokens.json'],
  ...['chat_template.jinja', 'chat_template.json', 'spiece.model', 'sentencepiece.bpe.model', 'tiktoken.model', 'tekken.json'],
]
/** Files that look like some of these. */
const own = [
  ...['README.md', 'notes.txt', 'train.py', 'model.py', 'optimizer.safetensors', 'trainer_state.json', 'my-model.gguf'],
  ...['model-backup.safetensors', 'old-config.json', 'words.json', 'params.json', 'mymerges.txt', 'metrics.jsonl'],
]

async function fill(folder: string, names: readonly string[]): Promise<void> {
  await mkdir(folder, { recursive: true })
  for (const name of names) await writeFile(join(folder, name), '{}')
}

describe('a model saved over another', () => {
  it('removes old shards and their index, whatever the shards are called', async () => {
    const folder = join(root, 'shards')
    using old = await make(1)
    await old.save(folder)
    const tensors = readTensors(join(folder, 'model.safetensors'))
    await rm(join(folder, 'model.safetensors'))
    const shards = ['model-00001-of-00002.safetensors', 'second part.safetensors']
    const weight_map: Record<string, string> = {}
    for (const [i, shard] of shards.entries()) {
      const part = tensors.filter((_, at) => at % 2 === i)
      writeTensors(join(folder, shard), part)
      for (const { name } of part) weight_map[name] = shard
    }
    await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map }))
    await writeFile(join(folder, 'third part.safetensors'), 'not of the model')
    using sharded = await LoopLM.fromPretrained(folder)
    expect(await parametersOf(sharded)).toEqual(await parametersOf(old))
    using fresh = await make(2)
    await fresh.save(folder)
    expect(await namesIn(folder)).toEqual([...bare, 'third part.safetensors'])
    using loaded = await LoopLM.fromPretrained(folder)
    expect(await parametersOf(loaded)).toEqual(await parametersOf(fresh))
  })

  it('removes every file of the old model and keeps the files of the user', async () => {
    const folder = join(root, 'described')
    await fill(folder, [...described, ...own])
    await fill(join(folder, 'additional_chat_templates'), ['rag.jinja'])
    await fill(join(folder, 'onnx'), ['model.onnx'])
    using model = await make(1)
    model.tokenizer = Tokenizer.characters('0123456789+=')
    await model.save(folder)
    expect(await namesIn(folder)).toEqual([...withTokenizer, ...own, 'onnx'].sort())
    for (const name of own) expect(await readFile(join(folder, name), 'utf8')).toBe('{}')
    using loaded = await LoopLM.fromPretrained(folder)
    expect(loaded.tokenizer!.encode('3+4=')).toEqual(model.tokenizer.encode('3+4='))
  })

  it('does not keep the chat template of the old model', async () => {
    const folder = join(root, 'template')
    using old = await make(1)
    old.tokenizer = new Tokenizer(JSON.parse(await tokenizerJson()), { chat_template: 'OLD' })
    await old.save(folder)
    await writeFile(join(folder, 'chat_template.jinja'), 'OLD, in a file')
    using model = await make(2)
    model.tokenizer = new Tokenizer(JSON.parse(await tokenizerJson()), { chat_template: 'NEW' })
    await model.save(folder)
    using loaded = await LoopLM.fromPretrained(folder)
    expect(loaded.tokenizer!.applyChatTemplate([{ role: 'user', content: 'hi' }])).toBe('NEW')
  })

  it('replaces symbolic links and keeps their targets', async () => {
    const [folder, cache] = [join(root, 'links'), join(root, 'cache')]
    await fill(cache, ['index', 'shard', 'config'])
    await mkdir(folder)
    const links = {
      'model.safetensors.index.json': 'index',
      'model-00001-of-00001.safetensors': 'shard',
      'config.json': 'config',
    }
    for (const [name, to] of Object.entries(links)) await symlink(join(cache, to), join(folder, name))
    await symlink(join(root, 'nowhere'), join(folder, 'vocab.json'))
    using model = await make(1)
    await model.save(folder)
    expect(await namesIn(folder)).toEqual(bare)
    for (const name of await namesIn(cache)) expect(await readFile(join(cache, name), 'utf8')).toBe('{}')
  })

  it('keeps a folder of the user that has the name of a model file', async () => {
    const folder = join(root, 'user-folder')
    await fill(join(folder, 'vocab.json'), ['mine'])
    await writeFile(join(folder, 'additional_chat_templates'), 'a file')
    using model = await make(1)
    await model.save(folder)
    expect(await namesIn(folder)).toEqual([...bare, 'additional_chat_templates', 'vocab.json'].sort())
  })

  it('removes no other files because of a damaged or hostile index', async () => {
    const folder = join(root, 'hostile')
    await fill(folder, ['notes.txt', 'mine.safetensors'])
    await writeFile(join(root, 'outside.safetensors'), 'mine')
    const weight_map = { a: '../outside.safetensors', b: 'notes.txt', c: 3, d: null }
    await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map }))
    await writeFile(join(folder, 'pytorch_model.bin.index.json'), '{"weight_map": ')
    using model = await make(1)
    await model.save(folder)
    expect(await namesIn(folder)).toEqual([...bare, 'mine.safetensors', 'notes.txt'].sort())
    expect(await readFile(join(root, 'outside.safetensors'), 'utf8')).toBe('mine')
  })

  it('warns that the old tokenizer was removed if it has none', async () => {
    const folder = join(root, 'lost')
    const warnings = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    try {
      using old = await make(1)
      await old.save(folder, { tokenizer: Tokenizer.characters('0123456789+=') })
      using model = await make(2)
      await model.save(folder)
      expect(await namesIn(folder)).toEqual(bare)
      expect(warnings).toHaveBeenCalledExactlyOnceWith(
        expect.stringMatching(
          /LoopLM\.save: the model has no tokenizer, so the tokenizer files of the model that was in .*lost were removed; .*pass tokenizer/,
        ),
        { type: 'LoopLMWarning' },
      )
    } finally {
      warnings.mockRestore()
    }
  })
})

describe('an adapter saved over a folder', () => {
  it('replaces an adapter and keeps a model', async () => {
    const folder = join(root, 'adapter')
    using model = await make(1)
    await model.save(folder)
    await fill(folder, ['adapter_model.bin', 'notes.txt'])
    await model.addAdapter({ rank: 2 })
    await model.saveAdapter(folder)
    expect(await namesIn(folder)).toEqual([...bare, 'adapter_config.json', 'adapter_model.safetensors', 'notes.txt'].sort())
    expect((await refusal(() => model.saveAdapter(folder, { dequantize: true } as never))).message).toMatch(/dequantize: unknown/)
  })

  it('is removed when the merged model is saved there', async () => {
    const folder = join(root, 'adapter')
    using model = await make(1)
    await model.addAdapter({ rank: 2 })
    using merged = await model.mergeAdapter()
    await merged.save(folder)
    expect(await namesIn(folder)).toEqual([...bare, 'notes.txt'])
  })
})

describe('Tokenizer.save', () => {
  it('removes the files of another tokenizer and keeps models and files of the user', async () => {
    const folder = join(root, 'tokenizer')
    await fill(folder, [...described, ...own])
    await new Tokenizer(JSON.parse(await tokenizerJson()), { chat_template: 'NEW' }).save(folder)
    const weights = described.filter((name) => /model\.|model-|consolidated|quant|adapter/.test(name))
    const kept = weights.filter((name) => !/^(tokenizer|spiece|tiktoken|sentencepiece\.bpe)\.model$/.test(name))
    expect(await namesIn(folder)).toEqual([...kept, ...own, 'tokenizer.json', 'tokenizer_config.json'].sort())
    const loaded = await Tokenizer.fromPretrained(folder)
    expect(loaded.applyChatTemplate([{ role: 'user', content: 'hi' }])).toBe('NEW')
  })
})

describe('the tokenizer of a task', () => {
  it('is set on the model by training and saved with it', { timeout: 60_000 }, async () => {
    const folder = join(root, 'task')
    using model = await make(1)
    using trainer = new PretrainTrainer(model, { task: tinyTask, steps: 1, batchSize: 4 })
    for await (const _ of trainer.run());
    expect(model.tokenizer).toBe(tinyTask.tokenizer)
    await model.save(folder)
    expect(await namesIn(folder)).toEqual(withTokenizer)
    const args = ['generate', folder, '--prompt', '17+05=', '--max-new-tokens', '3', '--temperature', '0', '--json']
    const { code, stdout, stderr } = await runProgram(args, { cwd: root })
    expect(stderr).toBe('')
    expect(JSON.parse(stdout)).toMatchObject({ prompt: '17+05=', text: expect.stringMatching(/^[\d+=]*$/) })
    expect(code).toBe(0)
  })

  it('does not replace a tokenizer that the model has', async () => {
    const tokenizer = Tokenizer.characters('=+9876543210')
    using model = await make(1)
    model.tokenizer = tokenizer
    using trainer = new PretrainTrainer(model, { task: tinyTask, steps: 1, batchSize: 4 })
    for await (const _ of trainer.run());
    expect(model.tokenizer).toBe(tokenizer)
  })

  it('can be saved by an option with a model that has no tokenizer', async () => {
    const folder = join(root, 'option')
    using model = await make(1)
    const { tokenizer } = addition({ digits: 2 })
    await model.save(folder, { tokenizer })
    expect(model.tokenizer).toBeUndefined()
    using loaded = await LoopLM.fromPretrained(folder)
    expect(loaded.tokenizer!.fingerprint).toBe(tokenizer.fingerprint)
    const large = await refusal(() => model.save(folder, { tokenizer: Tokenizer.bytes() }))
    expect(large.message).toBe("LoopLM.save: the tokenizer has 256 ids, the model's vocab_size is 12")
    const other = await refusal(() => model.save(folder, { tokenizer: 'bytes' as never }))
    expect(other.message).toMatch(/LoopLM\.save: tokenizer must be a Tokenizer, .*got 'bytes'/)
  })

  it('is in a checkpoint of an adapter', async () => {
    using model = await make(1)
    const runDir = join(root, 'adapter-run')
    using trainer = new PretrainTrainer(model, { task: tinyTask, steps: 1, batchSize: 4, lora: { rank: 2 }, runDir })
    for await (const _ of trainer.run());
    expect(await namesIn(join(runDir, 'checkpoints', 'step-1'))).toContain('tokenizer.json')
  })
})

async function tokenizerJson(): Promise<string> {
  const folder = await mkdtemp(join(root, 'json-'))
  await Tokenizer.characters('0123456789+=').save(folder)
  return readFile(join(folder, 'tokenizer.json'), 'utf8')
}
