// Folders that `save` writes, as Python meets them: test/fixtures/saved_folder.py had the PyTorch oracle read the same ones.
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoopLM } from '../../src/index.js'
import { writeOuroFolder } from '../ouro-folder.js'

const sizes = { vocab_size: 40, hidden_size: 24, intermediate_size: 40, num_hidden_layers: 2, num_attention_heads: 4 }
const cases = {
  plain: { config: { ...sizes, initializer_range: 0.3 }, dtype: 'float32' },
  grouped: {
    config: { ...sizes, initializer_range: 0.3, num_key_value_heads: 2, head_dim: 8, total_ut_steps: 3, rope_theta: 10000 },
    dtype: 'bfloat16',
  },
  tied: { config: { ...sizes, initializer_range: 0.3, tie_word_embeddings: true, eos_token_id: [0, 2] }, dtype: 'float32' },
} as const
type Case = keyof typeof cases
/** What the oracle found. */
interface Found {
  config: Record<string, unknown>
  tensors: Record<string, number[]>
  ids: number[]
  logprobs: number[]
  gates: number[]
}

let root: string
let found: Record<Case, Found>
beforeAll(async () => {
  root = process.env.LOOPLM_SAVED ?? (await mkdtemp(join(tmpdir(), 'looplm-saved-')))
  for (const [name, { config, dtype }] of Object.entries(cases)) {
    using model = await LoopLM.create(config as never, { dtype, seed: 21 })
    await model.save(join(root, name))
  }
  found = JSON.parse(await readFile(join(import.meta.dirname, '..', 'fixtures', 'saved-folder.json'), 'utf8'))
})
afterAll(() => (process.env.LOOPLM_SAVED === undefined ? rm(root, { recursive: true }) : undefined))

const json = async (...path: string[]) => JSON.parse(await readFile(join(root, ...path), 'utf8'))

describe.each(Object.keys(cases) as Case[])('the folder %s', (name) => {
  it('has the fields and tensors that the oracle read', async () => {
    expect((await readdir(join(root, name))).sort()).toEqual(['config.json', 'generation_config.json', 'model.safetensors'])
    expect(await json(name, 'config.json')).toEqual(found[name].config)
    const bytes = await readFile(join(root, name, 'model.safetensors'))
    const { __metadata__, ...header } = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString())
    const digits = /^[\da-f]{16}$/
    expect(__metadata__).toMatchObject({ format: 'pt', 'looplm.xxh64': expect.stringMatching(digits) }) // transformers refuses a file without a format
    expect(__metadata__['looplm.xxh64.tensors'].split(' ')).toHaveLength(Object.keys(header).length)
    const tensors = Object.entries<{ shape: number[] }>(header).map(([name, { shape }]) => [name, shape])
    expect(Object.fromEntries(tensors)).toEqual(found[name].tensors)
  })

  it('scores as in the PyTorch oracle', async () => {
    using model = await LoopLM.fromPretrained(join(root, name), { device: 'reference' })
    const { ids, logprobs, gates } = found[name]
    const scores = await model.score([ids])
    for (const [got, want] of [
      [scores.logprobs[0]!, logprobs],
      [scores.gateLogits[0]!, gates],
    ] as const) {
      expect(got).toHaveLength(want.length)
      for (const [i, value] of want.entries()) expect(Math.abs(got[i]! - value)).toBeLessThan(1e-5) // another libm, another seed's last bit
    }
  })

  it('has what transformers looks for beside the weights', async () => {
    const config = await json(name, 'config.json')
    expect(config).toMatchObject({
      architectures: ['OuroForCausalLM'],
      model_type: 'ouro',
      auto_map: {
        AutoConfig: 'ByteDance/Ouro-1.4B--configuration_ouro.OuroConfig',
        AutoModelForCausalLM: 'ByteDance/Ouro-1.4B--modeling_ouro.OuroForCausalLM',
      },
      rope_theta: expect.any(Number),
      torch_dtype: cases[name].dtype,
    })
    const { bos_token_id, eos_token_id } = config
    expect(await json(name, 'generation_config.json')).toEqual({ bos_token_id, eos_token_id })
  })
})

describe('a checkpoint that is loaded and saved again', () => {
  const own = {
    AutoConfig: 'configuration_ouro.OuroConfig',
    AutoModelForCausalLM: 'modeling_ouro.OuroForCausalLM',
    AutoTokenizer: ['someone/else--tokenization.Special', null],
  }
  const code = { 'configuration_ouro.py': '# the configuration\n', 'modeling_ouro.py': '# the model\n' }
  const change = async (folder: string, edit: (config: Record<string, unknown>) => object) => {
    const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
    await writeFile(join(folder, 'config.json'), JSON.stringify(edit(config)))
  }

  it('keeps its code, its fields and generation_config.json', async () => {
    const folder = await writeOuroFolder(join(root, 'published'))
    await change(folder, (config) => ({ ...config, auto_map: own, max_window_layers: 24, use_cache: true }))
    for (const [name, text] of Object.entries({ ...code, 'other.py': '# not named' })) await writeFile(join(folder, name), text)
    using model = await LoopLM.fromPretrained(folder)
    await model.save(join(root, 'again'))
    expect(await json('again', 'config.json')).toMatchObject({ auto_map: own, max_window_layers: 24, use_cache: true })
    for (const [name, text] of Object.entries(code)) expect(await readFile(join(root, 'again', name), 'utf8')).toBe(text)
    expect(await readdir(join(root, 'again'))).not.toContain('other.py')
    expect(await json('again', 'generation_config.json')).toEqual(await json('published', 'generation_config.json'))
    expect(await json('again', 'tokenizer.json')).toEqual(await json('published', 'tokenizer.json'))
    expect((await json('again', 'tokenizer_config.json')).chat_template).toContain('<|im_start|>')
  })

  it('refers to the published code if its own files are missing', async () => {
    const folder = await writeOuroFolder(join(root, 'without-code'))
    await change(folder, (config) => ({ ...config, auto_map: own }))
    using model = await LoopLM.fromPretrained(folder)
    await model.save(join(root, 'without-code-again'))
    expect((await json('without-code-again', 'config.json')).auto_map).toEqual({
      ...own,
      AutoConfig: 'ByteDance/Ouro-1.4B--configuration_ouro.OuroConfig',
      AutoModelForCausalLM: 'ByteDance/Ouro-1.4B--modeling_ouro.OuroForCausalLM',
    })
  })

  it('from transformers 5 is saved in a form that versions 4 and 5 read', async () => {
    const folder = await writeOuroFolder(join(root, 'five'))
    await change(folder, ({ rope_theta, rope_scaling, torch_dtype, ...config }) => ({
      ...config,
      dtype: 'bfloat16',
      rope_parameters: { rope_theta: 5000, rope_type: 'default' },
    }))
    using model = await LoopLM.fromPretrained(folder, { dtype: 'bfloat16' })
    await model.save(join(root, 'five-again'))
    const config = await json('five-again', 'config.json')
    expect(config).toMatchObject({ dtype: 'bfloat16', torch_dtype: 'bfloat16', rope_theta: 5000, rope_scaling: null })
    expect(config.rope_parameters).toBeUndefined()
  })
})
