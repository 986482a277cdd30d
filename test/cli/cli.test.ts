// The command line as a user meets it: the built program. A command is a separate process once; its other uses share one.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { parse, stringify } from 'yaml'
import { type DeviceStatus, LoopLM, Tokenizer } from '../../src/index.js'
import { writeOuroFolder } from '../ouro-folder.js'
import { OneProcess, type Outcome, program, runProgram } from './program.js'

let root: string
let one: OneProcess
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-cli-'))
  one = new OneProcess()
})
afterAll(async () => {
  await one[Symbol.asyncDispose]()
  await rm(root, { recursive: true })
})

const looplm = (args: readonly string[], input?: string) => one.looplm(root, args, input)
const start = (args: readonly string[], watch?: (process: ChildProcess, stdout: string) => void, input?: string) =>
  runProgram(args, { cwd: root, watch, input })

const jsonLines = (text: string) =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))

const config = {
  trainer: 'pretrain',
  model: { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 },
  task: { name: 'addition', digits: 1 },
  threads: 1,
  options: { steps: 4, batchSize: 8, learningRate: 0.01 },
}

async function writeConfig(name: string, change: object = {}): Promise<string> {
  const path = join(root, name)
  await writeFile(path, stringify({ ...config, ...change }))
  return path
}

function expectRefusal({ code, stdout, stderr }: Outcome, message: RegExp): void {
  expect(stderr).toMatch(message)
  expect(stderr).not.toMatch(/^\s+at /m)
  expect(stdout).toBe('')
  expect(code).toBe(2)
}

describe('looplm', () => {
  it('info lists the devices of this machine', async () => {
    const { code, stdout } = await start(['info', '--json'])
    const facts = JSON.parse(stdout)
    expect(code).toBe(0)
    expect(facts.node).toBe(process.version)
    expect(facts.devices.map(({ name }: { name: string }) => name)).toEqual(expect.arrayContaining(['cpu', 'reference', 'cuda']))
    for (const { description } of facts.devices) expect(description).toMatch(/\w/)
    expect((await looplm(['info'])).stdout).toContain(facts.looplm)
  })

  it.each(['nonsense', '', 'avx512_bf17'])('info still lists all devices when LOOPLM_CPU_ISA is %j', (isa) => {
    const env = { ...process.env, LOOPLM_CPU_ISA: isa }
    const { status, stdout } = spawnSync(process.execPath, [program, 'info', '--json'], { env, encoding: 'utf8' })
    const devices = JSON.parse(stdout).devices as DeviceStatus[]
    expect(status).toBe(0)
    expect(devices.map(({ name }) => name)).toEqual(expect.arrayContaining(['cpu', 'reference', 'cuda']))
    expect(devices.find(({ name }) => name === 'cpu')).toMatchObject({
      available: false,
      description: expect.stringMatching(`not used: .*LOOPLM_CPU_ISA in the environment is "${isa}"; it takes .*baseline`),
    })
    expect(devices.find(({ name }) => name === 'reference')).toMatchObject({ available: true })
  })

  it('lists the options of a trainer', async () => {
    const { stdout } = await start(['options', 'rltt', '--json'])
    expect(JSON.parse(stdout)).toContainEqual(expect.objectContaining({ name: 'groupSize', default: '8' }))
    expect((await looplm(['options', 'pretrain'])).stdout).toMatch(/^entropyCoefficient: number >= 0 = 0\.1$/m)
  })

  it('eval --text reports loss and perplexity after each loop', async () => {
    using model = await LoopLM.create({
      vocab_size: 257,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      total_ut_steps: 2,
    })
    model.tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
    await model.save(join(root, 'bytes'))
    await writeFile(join(root, 'some.txt'), 'A looped model runs the same blocks again.')
    const evaluated = await start(['eval', 'bytes', '--text', 'some.txt', '--context-length', '16', '--json'])
    const { results } = JSON.parse(evaluated.stdout)
    const { logprobs } = await model.score([[...model.tokenizer.encode('A looped model r')]])
    expect(results.map(({ loops, tokens }: { loops: number; tokens: number }) => [loops, tokens])).toEqual([
      [1, 42],
      [2, 42],
    ])
    const first = await looplm(['eval', 'bytes', '--text', 'some.txt', '--context-length', '16', '--problems', '1', '--json'])
    const losses = [0, 1].map((t) => Array.from(logprobs[0]!.slice(15 * t, 15 * (t + 1))).reduce((sum, l) => sum - l / 15, 0))
    for (const [t, { loss, perplexity }] of JSON.parse(first.stdout).results.entries()) {
      expect(loss).toBeCloseTo(losses[t]!, 5)
      expect(perplexity).toBeCloseTo(Math.exp(losses[t]!), 3)
    }
    expect(Math.abs(losses[0]! - losses[1]!)).toBeGreaterThan(1e-3) // else the loops could be mixed up
    expectRefusal(
      await looplm(['eval', 'bytes', '--text', 'some.txt', '--task', 'addition']),
      /pass one of --task, --dataset and --text/,
    )
  })

  it('trains, evaluates and generates from one folder', async () => {
    const path = await writeConfig('train.yaml')
    const trained = await start(['train', path, '--run-dir', 'runs/a', '--set', 'steps=3', '--set', 'task.digits=2', '--json'])
    expect(trained.stderr).toBe('')
    expect(trained.code).toBe(0)
    const events = jsonLines(trained.stdout)
    expect(events.map(({ type }) => type)).toEqual(['step', 'step', 'step', 'checkpoint', 'done'])
    const written = await readFile(join(root, 'runs/a/config.yaml'), 'utf8')
    expect(written).toMatch(/digits: 2[\s\S]*steps: 3/)
    expect(jsonLines(await readFile(join(root, 'runs/a/metrics.jsonl'), 'utf8'))).toHaveLength(3)

    const model = 'runs/a/checkpoints/step-3'
    const task = '{ name: addition, digits: 2 }'
    const evaluated = await looplm(['eval', model, '--task', task, '--problems', '8', '--loops', '1,2', '--json'])
    expect(JSON.parse(evaluated.stdout).results.map(({ loops }: { loops: number }) => loops)).toEqual([1, 2])

    const generated = await looplm([
      'generate',
      model,
      '--prompt',
      '12+34=',
      '--prompt',
      '00+00=',
      '--max-new-tokens',
      '3',
      '--temperature',
      '0',
      '--stop',
      '+',
      '--json',
    ])
    const results = jsonLines(generated.stdout)
    expect(results.map(({ prompt }) => prompt)).toEqual(['12+34=', '00+00='])
    const streamed = await looplm([
      'generate',
      model,
      '--prompt',
      '12+34=',
      '--max-new-tokens',
      '3',
      '--temperature',
      '0',
      '--stop',
      '+',
    ])
    expect(streamed.stdout).toBe(`${results[0].text}\n`)
    const settings = ['--max-new-tokens', '3', '--temperature', '0', '--stop', '+']
    const both = await looplm(['generate', model, '--prompt', '12+34=', '--prompt', '00+00=', ...settings])
    expect(both.stdout).toBe(`${results[0].text}\n${results[1].text}\n`)

    const again = await looplm(['train', path, '--run-dir', 'runs/a'])
    expectRefusal(again, /already holds a run; continue it with resume \(--resume\)/)
    expect(await readFile(join(root, 'runs/a/config.yaml'), 'utf8')).toBe(written)
  })

  it('trains an adapter and uses it with --adapter', async () => {
    const base = await looplm(['train', await writeConfig('base.yaml'), '--run-dir', 'runs/base', '--json'])
    expect(base.stderr).toBe('')
    const folder = 'runs/base/checkpoints/step-4'
    const change = { model: folder, options: { ...config.options, learningRate: 0.3, lora: { rank: 2 } } }
    const trained = await looplm(['train', await writeConfig('lora.yaml', change), '--run-dir', 'runs/lora', '--json'])
    expect(trained.stderr).toBe('')
    const adapter = 'runs/lora/checkpoints/step-4'
    const sample = async (...more: string[]) => {
      const prompt = ['--prompt', '1+2=', '--max-new-tokens', '4', '--temperature', '0', '--json']
      const { stdout, stderr } = await looplm(['generate', folder, ...prompt, ...more])
      expect(stderr).toBe('')
      return JSON.parse(stdout).logprobs
    }
    expect(await sample('--adapter', adapter)).not.toEqual(await sample())
    expectRefusal(await looplm(['eval', adapter, '--task', 'addition']), /holds an adapter/)
  })

  it('saves a checkpoint on Ctrl-C, prints how to continue, and resumes from the folder with the original flags and --set changes', async () => {
    const path = await writeConfig("it's long.yaml", { options: { ...config.options, steps: 1e6 } })
    let interrupted = false
    const flags = ['--run-dir', 'runs/with $HOME', '--device', 'cpu', '--dtype', 'bfloat16', '--threads', '1', '--set', 'seed=3']
    const stopped = await start(['train', "it's long.yaml", ...flags, '--json'], (child, stdout) => {
      if (interrupted || stdout.split('\n').length < 3) return
      interrupted = true
      child.kill('SIGINT')
    })
    expect(stopped.code).toBe(130)
    const step = jsonLines(stopped.stdout).at(-1).step
    const command = "train --resume 'runs/with $HOME'"
    expect(stopped.stderr).toContain(
      `stopped after step ${step}; saved runs/with $HOME/checkpoints/step-${step}; continue with: looplm ${command}\n`,
    )
    const written = parse(await readFile(join(root, 'runs/with $HOME/config.yaml'), 'utf8'))
    expect(written).toMatchObject({ device: 'cpu', dtype: 'bfloat16', threads: 1, options: { seed: 3 } })
    const again = spawnSync('sh', ['-c', `'${process.execPath}' '${program}' ${command} --set steps=${step + 1}`], { cwd: root })
    expect(String(again.stderr)).toContain(`step ${step + 1}/${step + 1}`)
    expect(again.status).toBe(0)
    expect(path).toContain("it's")
    const checkpoint = `runs/with $HOME/checkpoints/step-${step}`
    const resumed = await looplm(['train', '--resume', checkpoint, '--set', `steps=${step + 2}`, '--json'])
    expect(resumed.code).toBe(0)
    const steps = jsonLines(resumed.stdout).filter(({ type }) => type === 'step')
    expect(steps.map((event) => event.step)).toEqual([step + 1, step + 2])
    expect(resumed.stderr).toContain(`the later step-${step + 1} of runs/with $HOME were renamed`)
  })

  it('says that nothing is left to do when a resumed run is complete', async () => {
    const path = await writeConfig('finished.yaml', { runDir: 'runs/finished' })
    await looplm(['train', path])
    const { code, stdout } = await looplm(['train', path, '--resume'])
    expect(stdout).toBe('nothing was left to do: the run has made its 4 steps; continue it with --set steps=…\n')
    expect(code).toBe(0)
  })

  it('changes no run folder and creates none when a resume is rejected', async () => {
    const path = await writeConfig('kept.yaml')
    await looplm(['train', path, '--run-dir', 'runs/kept'])
    const before = await readFile(join(root, 'runs/kept/config.yaml'), 'utf8')
    const other = await writeConfig('other.yaml', { trainer: 'rltt', options: { steps: 6, promptsPerStep: 2, groupSize: 2 } })
    expectRefusal(
      await looplm(['train', other, '--run-dir', 'runs/kept', '--resume']),
      /written by the trainer pretrain, not rltt/,
    )
    expect(await readFile(join(root, 'runs/kept/config.yaml'), 'utf8')).toBe(before)
    expectRefusal(await looplm(['train', path, '--run-dir', 'fresh/new', '--resume', 'nowhere/ckpt']), /no file nowhere\/ckpt/)
    expect(existsSync(join(root, 'fresh'))).toBe(false)
    const resumed = await looplm(['train', path, '--run-dir', 'runs/kept', '--resume', '--set', 'steps=5'])
    expect(resumed.code).toBe(0)
    expect(await readFile(join(root, 'runs/kept/config.yaml'), 'utf8')).toBe(before.replace('steps: 4', 'steps: 5'))
  })

  it('treats an empty "options:" as no options', async () => {
    await writeFile(join(root, 'empty.yaml'), stringify({ ...config, options: undefined }).concat('options:\n'))
    const { code, stdout } = await looplm(['train', 'empty.yaml', '--set', 'steps=1', '--set', 'batchSize=2', '--json'])
    expect(code).toBe(0)
    expect(jsonLines(stdout).map(({ type }) => type)).toEqual(['step', 'done'])
  })

  it('a reward that takes too long is an error, not an interruption', async () => {
    await writeFile(join(root, 'slow.mjs'), 'export const judge = () => new Promise(() => {})\n')
    const options = { steps: 1, promptsPerStep: 1, groupSize: 2, rewardTimeout: 0.1 }
    await writeConfig('slow.yaml', { trainer: 'grpo', reward: [{ reward: 'slow.mjs' }], options })
    const { code, stderr } = await looplm(['train', 'slow.yaml', '--json'])
    expect(stderr).toBe(
      'error: reward judge: no answer within rewardTimeout = 0.1 s; raise it, or return null if there is no score\n',
    )
    expect(code).toBe(1)
  })

  it('generate prints "interrupted" and no error on Ctrl-C', async () => {
    await writeOuroFolder(join(root, 'endless'), {
      config: { hidden_size: 128, intermediate_size: 256, num_hidden_layers: 8, max_position_embeddings: 100_000 },
      endTokens: [],
    })
    let sent = false
    const args = ['generate', 'endless', '--prompt', 'the', '--max-new-tokens', '90000']
    const { code, stderr } = await start(args, (child) => {
      if (!sent) child.kill('SIGINT')
      sent = true
    })
    expect(stderr).toBe('\nstopping; press Ctrl-C again to end at once\ninterrupted\n')
    expect(code).toBe(130)
  })

  it('generates only what a schema, a regular expression or a grammar allows', async () => {
    await writeOuroFolder(join(root, 'constrained'))
    await writeFile(join(root, 'schema.json'), '\ufeff{"type":"boolean"}') // the byte order marks are no text
    await writeFile(join(root, 'rules.ebnf'), '\ufeffroot ::= "yes" | "no"')
    const schema = '{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":false}'
    const grammars: [string[], RegExp][] = [
      [['--json-schema', schema], /^\{"a": ?[12]\}$/],
      [['--json-schema', 'schema.json'], /^(true|false)$/],
      [['--regex', '[a-c]{3}x'], /^[a-c]{3}x$/],
      [['--grammar-file', 'rules.ebnf'], /^(yes|no)$/],
    ]
    const generate = ['generate', 'constrained', '--prompt', 'the', '--max-new-tokens', '40', '--seed', '1', '--json']
    for (const [args, text] of grammars) {
      const { code, stdout, stderr } = await looplm([...generate, ...args])
      expect(code, stderr).toBe(0)
      expect(JSON.parse(stdout).text).toMatch(text)
    }
  })

  it('generates for the lines of a file, which must be UTF-8', async () => {
    await writeOuroFolder(join(root, 'lined'))
    await writeFile(join(root, 'lines.txt'), '\ufeffthe\r\na\ufeffn\n')
    await writeFile(join(root, 'wide.txt'), Buffer.from('\ufeffthe\n', 'utf16le'))
    await writeFile(join(root, 'gap.txt'), 'the\n\nan')
    await writeFile(join(root, 'none.txt'), '')
    const generate = (path: string) => looplm(['generate', 'lined', '--prompts', path, '--max-new-tokens', '1', '--json'])
    const { code, stdout, stderr } = await generate('lines.txt')
    expect(code, stderr).toBe(0)
    expect(jsonLines(stdout).map(({ prompt }) => prompt)).toEqual(['the', 'a\ufeffn'])
    expectRefusal(await generate('wide.txt'), /wide\.txt line 1 is not valid UTF-8; save the file as UTF-8/)
    expectRefusal(await generate('gap.txt'), /gap\.txt: line 2 is empty; write one prompt per line/)
    expectRefusal(await generate('none.txt'), /none\.txt: holds no prompt/)
    expectRefusal(await generate('no.txt'), /no file no\.txt/)
  })

  it('shows progress on standard error and the outcome on standard output', async () => {
    const { code, stdout, stderr } = await looplm(['train', await writeConfig('plain.yaml')])
    expect(code).toBe(0)
    expect(stderr).toMatch(/^step 4\/4 {2}left 0s {2}loss /m)
    expect(stderr).toMatch(
      /^pretrain: [\d,]+ parameters, float32 on cpu, 1 thread\nthe task addition: 4 steps of 8 sequences\nno run folder \(--run-dir\): nothing is saved\n/,
    )
    expect(stdout).toMatch(/^done after 4 steps in \d+s: loss [\d.]+\n$/)
  })

  it('summarizes a run: best evaluation, checkpoint and report', async () => {
    const path = await writeConfig('summed.yaml', { options: { ...config.options, evalEvery: 2, evalProblems: 8 } })
    const { stdout, stderr } = await looplm(['train', path, '--run-dir', 'runs/summed'])
    expect(stderr).toMatch(/^runs\/summed; watch it with: looplm watch runs\/summed$/m)
    const best = 'best       eval/loop_2/reward [\\d.]+ at step [024], [\\d.]+ at step 0'
    const files = 'checkpoint runs/summed/checkpoints/step-4\nreport     runs/summed/report.html'
    expect(stdout).toMatch(new RegExp(`^done after 4 steps in \\d+s: loss [\\d.]+\n${best}\n${files}\n$`))
  })

  it('trains on a dataset with a reward module', async () => {
    const rows = Array.from({ length: 8 }, (_, i) => JSON.stringify({ prompt: `${i}+`, answer: String(i) }))
    await writeFile(join(root, 'rows.jsonl'), rows.join('\n'))
    await writeFile(join(root, 'rewards.mjs'), 'export const size = (prompt, completion) => completion.codePointAt(0) % 5\n')
    const path = await writeConfig('rl.yaml', {
      trainer: 'rltt',
      task: undefined,
      dataset: 'rows.jsonl',
      tokenizer: 'bytes',
      reward: [{ reward: 'rewards.mjs', weight: 0.5 }, { reward: 'exactMatch' }],
      options: { steps: 1, promptsPerStep: 2, groupSize: 4, maxNewTokens: 2 },
    })
    const { code, stdout, stderr } = await looplm(['train', path, '--json'])
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const { metrics } = jsonLines(stdout)[0]
    const [size, match] = [metrics['rewards/size/mean'], metrics['rewards/exactMatch/mean']]
    expect(size).toBeGreaterThan(0)
    expect(size).toBeLessThanOrEqual(4)
    expect(metrics.reward).toBeCloseTo(0.5 * size + match, 10)
  })
})

describe('a new model with a tokenizer', () => {
  const rows = Array.from({ length: 8 }, (_, i) => ({ prompt: `${i}:`, completion: 'yes', answer: 'yes' }))
  const checkpoint = 'runs/ends/checkpoints/step-120'
  beforeAll(async () => {
    await Tokenizer.bytes({ special: { bos: '<bos>', eos: '<eos>', pad: '<pad>' } }).save(join(root, 'ends'))
    await writeFile(join(root, 'yes.jsonl'), rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
    const path = await writeConfig('ends.yaml', {
      task: undefined,
      dataset: 'yes.jsonl',
      evalDataset: 'yes.jsonl',
      tokenizer: 'ends',
      options: { steps: 120, batchSize: 8, learningRate: 0.01, evalEvery: 120 },
    })
    const { code, stderr } = await looplm(['train', path, '--run-dir', 'runs/ends'])
    expect(code).toBe(0)
    expect(stderr).toMatch(
      /^step 0 {2}loop_1 accuracy [\d.]+ \([\d.]+ to [\d.]+\) {2}loop_2 accuracy [\d.]+ \([\d.]+ to [\d.]+\)$/m,
    )
    expect(stderr).not.toContain('warning')
  })

  it('stops at the end token in generate and eval, and saves it in config files', async () => {
    const read = async (file: string) => JSON.parse(await readFile(join(root, checkpoint, file), 'utf8'))
    const ids = { bos_token_id: 256, eos_token_id: 257, pad_token_id: 258 }
    expect(await read('config.json')).toMatchObject(ids)
    expect(await read('generation_config.json')).toMatchObject(ids)
    const generated = await looplm(['generate', checkpoint, '--prompt', '3:', '--temperature', '0', '--json'])
    expect(jsonLines(generated.stdout)[0]).toMatchObject({ text: 'yes', finishReason: 'stop' })
    const evaluated = await looplm(['eval', checkpoint, '--dataset', 'yes.jsonl', '--loops', '2'])
    expect(evaluated.stdout).toBe('8 problems, greedy; intervals of 95 %\n2 loops  reward 1.00 (0.676 to 1.000)  tokens 4.00\n')
    const short = await looplm(['eval', checkpoint, '--dataset', 'yes.jsonl', '--loops', '2', '--max-new-tokens', '2'])
    expect(short.stdout).toBe(
      '8 problems, greedy; intervals of 95 %\n2 loops  reward 0 (0.000 to 0.324)  tokens 2.00  cut off 100 %\n',
    )
  })

  it('is evaluated with several samples per problem on one split, with the answers saved', async () => {
    await mkdir(join(root, 'parts'))
    await writeFile(join(root, 'parts', 'train.csv'), 'question,reply\n0:,no\n')
    await writeFile(join(root, 'parts', 'test.jsonl'), `${JSON.stringify({ problem: '1:', answer: 'yes' })}\n`)
    const part = ['--dataset', 'parts', '--split', 'test', '--columns', 'math', '--reward', 'exactMatch']
    const sampled = ['--loops', '2', '--samples', '4', '--temperature', '0.1', '--save', 'answers.jsonl']
    await writeFile(join(root, 'answers.jsonl'), 'earlier answers\n'.repeat(100))
    const { code, stdout, stderr } = await looplm(['eval', checkpoint, ...part, ...sampled])
    expect([code, stderr]).toEqual([0, ''])
    const line = '2 loops  reward 1.00 (1.000 to 1.000)  pass@1 1.00  pass@2 1.00  pass@4 1.00  tokens 4.00'
    expect(stdout).toBe(`1 problems, 4 samples, temperature 0.1; intervals of 95 %\n${line}\n`)
    const answers = (await readFile(join(root, 'answers.jsonl'), 'utf8')).trimEnd().split('\n')
    const answer = { loops: 2, problem: 0, prompt: '1:', answer: 'yes', completion: 'yes', reward: 1 }
    expect(answers.map((one) => JSON.parse(one))).toEqual([0, 1, 2, 3].map((sample) => ({ ...answer, sample })))
  })

  it('is not evaluated if the answers cannot be saved, and an evaluation that fails leaves the file as it was', async () => {
    const save = (model: string, file: string) =>
      looplm(['eval', model, '--dataset', 'yes.jsonl', '--loops', '2', '--problems', '1', '--save', file])
    expectRefusal(await save('no-model', 'nowhere/answers.jsonl'), /cannot write nowhere\/answers\.jsonl: .*\(ENOENT\)/)
    expectRefusal(await save('no-model', 'runs'), /cannot write runs: .*\(EISDIR\)/)
    await writeFile(join(root, 'earlier.jsonl'), 'earlier answers\n')
    for (const file of ['earlier.jsonl', 'later.jsonl']) expectRefusal(await save('no-model', file), /no-model/)
    expect(await readFile(join(root, 'earlier.jsonl'), 'utf8')).toBe('earlier answers\n')
    expect(existsSync(join(root, 'later.jsonl'))).toBe(false)
    if (!existsSync('/dev/full')) return // Linux has it
    const full = await save(checkpoint, '/dev/full')
    expect(full.stderr).toMatch(/cannot write \/dev\/full: .*\(ENOSPC\)/)
    expect(full.stdout).toMatch(/^1 problems, greedy/)
  })

  it('is not evaluated or trained on conversations that lack prompts', async () => {
    const messages = [{ role: 'user', content: 'hi' }]
    await writeFile(join(root, 'chat.jsonl'), `${JSON.stringify({ messages, answer: 'ho' })}\n`)
    const refused = await looplm(['eval', checkpoint, '--dataset', 'chat.jsonl'])
    expectRefusal(
      refused,
      /chat\.jsonl line 1 field "prompt" is missing: the model answers prompts here, but the row has messages/,
    )
    const training = {
      trainer: 'rltt',
      task: undefined,
      tokenizer: undefined,
      dataset: 'chat.jsonl',
      reward: 'exactMatch',
      model: checkpoint,
    }
    const path = await writeConfig('chat.yaml', { ...training, options: { steps: 1 } })
    expectRefusal(await looplm(['train', path]), /chat\.jsonl line 1 field "prompt" is missing/)
  })
})

describe('looplm chat', () => {
  const chat = (lines: string, args: string[] = []) =>
    looplm(['chat', 'ouro', '--max-new-tokens', '12', '--seed', '3', ...args], lines)
  beforeAll(async () => {
    await writeOuroFolder(join(root, 'ouro'), { endTokens: [] })
    const config = { hidden_size: 128, intermediate_size: 256, num_hidden_layers: 8, max_position_embeddings: 100_000 }
    await writeOuroFolder(join(root, 'slow'), { config, endTokens: [] })
    await writeFile(join(root, 'slow', 'chat_template.jinja'), '{% for message in messages %}{{ message.content }}\n{% endfor %}') // no token ends a turn
  })

  it('answers each line, says which loops were used, and keeps the conversation', async () => {
    const args = ['chat', 'ouro', '--max-new-tokens', '12', '--seed', '3', '--exit-threshold', '0.5']
    const { code, stdout, stderr } = await start(args, undefined, 'hello\nhello\n/reset\nhello\n')
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const answers = stdout.replace('forgotten\n', '').split(/^(\d+ tokens, .*)$/m)
    const sums = answers.filter((part) => / loops each /.test(part))
    expect(sums).toHaveLength(3)
    for (const sum of sums) {
      const tokens = Number(/^\d+/.exec(sum)![0])
      const counts = [...sum.matchAll(/(\d): (\d+)/g)].map((match) => [Number(match[1]), Number(match[2])] as const)
      expect(counts.reduce((total, [, count]) => total + count, 0)).toBe(tokens)
      const mean = counts.reduce((total, [loop, count]) => total + loop * count, 0) / tokens
      expect(sum).toContain(`${mean.toFixed(2)} loops each`)
    }
    expect(answers[2]!.trim()).not.toBe(answers[0]!.trim()) // the second answer follows the first
    expect(answers[4]!.trim()).toBe(answers[0]!.trim())
    expect(stdout.replaceAll('\n', '').replaceAll('\t', '')).not.toMatch(/\p{Cc}/u) // the model's control characters stay away
  })

  it('has slash commands for loops and system message, and explains wrong commands', async () => {
    const stable = await chat('hello\n', ['--exit', 'argmax-stable', '--min-loops', '3'])
    expect(stable.stdout).toMatch(/ loops each \((3: \d+, )?4: \d+\)/)
    const { stdout } = await chat('/loops 2\nhello\n/system Be.\nhello\n/nonsense\n/loops x\n/mode maybe\n/exit\nhello\n')
    expect([...stdout.matchAll(/tokens, (.*?) loops each \((.*?)\)/g)].map((match) => match[1])).toEqual(['2.00', '2.00'])
    expect(stdout).toMatch(/unknown command \/nonsense; the commands are:\n\/reset/)
    expect(stdout).toMatch(/error: \/loops: needs a number above 0, got "x"/)
    expect(stdout).toMatch(/\/mode takes think, no-think, auto or default/)
  })

  it('thinks according to its mode, and shows the reason in mode auto', async () => {
    const modes = ['no-think', 'think', 'default']
    const asked = ['hello\n', ...modes.map((mode) => `/reset\n/mode ${mode}\nhello\n`)]
    const { stdout, stderr } = await chat(asked.join(''), ['--mode', 'auto'])
    expect(stderr).toBe('')
    const sums = stdout.match(/^\d+ tokens, .*$/gm)!
    expect(sums).toHaveLength(4)
    const [, chosen] = /, (no-think|think) \(entropy \d\.\d\d\)/.exec(sums[0]!)!
    for (const sum of sums.slice(1)) expect(sum).not.toContain('entropy')
    const [auto, direct, thinking, plain] = stdout
      .split(/^\d+ tokens, .*$/m)
      .map((text) => text.replace('forgotten\n', '').trim())
    expect(direct).not.toBe(thinking)
    expect(plain).toBe(thinking) // as the template has it
    expect(auto).toBe(chosen === 'think' ? thinking : direct)
    const unknown = await chat('hello\n', ['--mode', 'deep'])
    expectRefusal(unknown, /think, no-think, auto/)
  })

  it('saves a conversation with /save and continues it with --load', async () => {
    const whole = await chat('one\n/save talk.json\ntwo\n', ['--system', 'Be.', '--temperature', '0'])
    expect(whole.stdout).toContain('3 messages in talk.json\n')
    const saved = JSON.parse(await readFile(join(root, 'talk.json'), 'utf8'))
    expect(saved.map(({ role }: { role: string }) => role)).toEqual(['system', 'user', 'assistant'])
    await writeFile(join(root, 'talk.json'), `\ufeff${JSON.stringify(saved)}`) // as some editors save it
    const later = await chat('two\n/save talk.json\n', ['--load', 'talk.json', '--temperature', '0'])
    expect(later.stdout).toContain('5 messages in talk.json\n')
    const longer = JSON.parse(await readFile(join(root, 'talk.json'), 'utf8'))
    expect(longer.slice(0, 3)).toEqual(saved)
    expect(longer[3]).toEqual({ role: 'user', content: 'two' })
    const answers = [await chat('two\n', ['--temperature', '0']), later].map(({ stdout }) => stdout.split(/\n12 tokens/)[0])
    expect(answers[1]).not.toBe(answers[0]) // it follows the conversation
    expectRefusal(await chat('', ['--load', 'no.json']), /no\.json/)
  })

  it('stops an answer on Ctrl-C and exits on the second one', async () => {
    let interrupts = 0
    const interrupt = (child: ChildProcess, stdout: string) => {
      if (interrupts === 0 ? stdout.length <= 5 : interrupts === 2 || !stdout.endsWith(', stopped\n')) return
      interrupts++
      child.kill('SIGINT')
    }
    const { code, stdout } = await start(['chat', 'slow', '--max-new-tokens', '90000'], interrupt, 'hello\n')
    expect(stdout.match(/ tokens, .*, stopped\n$/g)).toHaveLength(1)
    expect(code).toBe(130)
  })

  it.skipIf(!existsSync('/usr/bin/script'))(
    'colours tokens by loop on a terminal, unless --no-color is set (needs the program script of util-linux)',
    async () => {
      const terminal = (args: string) =>
        new Promise<string>((resolve) => {
          const line = `'${process.execPath}' '${program}' chat ouro --max-new-tokens 12 --seed 3 --exit-threshold 0.5 ${args}`
          const env = { ...process.env, TERM: 'xterm', NO_COLOR: undefined, CI: undefined, FORCE_COLOR: undefined }
          const child = spawn('script', ['-qec', line, '/dev/null'], { cwd: root, env })
          child.stdin.on('error', () => {}) // it may have ended before the second Ctrl-C
          let shown = ''
          let said = false
          let left = false
          child.stdout.on('data', (text) => {
            shown += text
            if (!said && shown.includes('> ')) {
              said = true
              child.stdin.write('hello\r')
            }
            if (/ tokens\/s/.test(shown) && !left) {
              left = true
              child.stdin.write('\x03\x03')
            }
          })
          child.on('close', () => resolve(shown))
        })
      const coloured = (await terminal('')).replaceAll('\x1b', 'ESC')
      expect(coloured).toContain('loops ESC[32m1ESC[39m ESC[36m2ESC[39m')
      expect(coloured.match(/ESC\[3\dm[^E]+ESC\[39m/g)!.length).toBeGreaterThan(12)
      const plain = (await terminal('--no-color')).replaceAll('\x1b', 'ESC')
      expect(plain).toContain('loops 1 2 3 4')
      expect(plain).not.toMatch(/ESC\[3\dm/)
    },
  )
})

describe('looplm serve', () => {
  it('serves a folder until Ctrl-C', async () => {
    await writeOuroFolder(join(root, 'ouro'))
    let url: string | undefined
    let answer: Promise<unknown> | undefined
    const { code, stdout, stderr } = await start(['serve', 'ouro', '--port', '0'], (child, stdout) => {
      url ??= /^ouro at (http:\S+\/v1)\n$/.exec(stdout)?.[1]
      if (url === undefined || answer !== undefined) return
      const body = JSON.stringify({ model: 'ouro', prompt: 'the', max_tokens: 4 })
      answer = fetch(`${url}/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body })
        .then((response) => response.json())
        .finally(() => child.kill('SIGINT'))
    })
    expect(await answer).toMatchObject({ object: 'text_completion', model: 'ouro' })
    expect(stdout).toBe(`ouro at ${url}\n`)
    expect(stderr).toBe('\nstopping; press Ctrl-C again to end at once\n')
    expect(code).toBe(0)
  })
})

describe('looplm serve with the name of a model that was downloaded', () => {
  it('finds it in the cache and serves it under that name', async () => {
    const commit = 'c0ffee'.padEnd(40, '0')
    const repository = join(root, 'hub', 'models--org--tiny')
    await writeOuroFolder(join(repository, 'snapshots', commit))
    await mkdir(join(repository, 'refs'), { recursive: true })
    await writeFile(join(repository, 'refs', 'main'), commit)
    let models: Promise<unknown> | undefined
    process.env.HF_HUB_CACHE = join(root, 'hub')
    try {
      const { code, stderr } = await start(['serve', 'org/tiny', '--port', '0'], (child, stdout) => {
        const url = /^org\/tiny at (http:\S+\/v1)\n$/.exec(stdout)?.[1]
        if (url === undefined || models !== undefined) return
        models = fetch(`${url}/models/org/tiny`)
          .then((response) => response.json())
          .finally(() => child.kill('SIGINT'))
      })
      expect([await models, code, stderr]).toMatchObject([
        { id: 'org/tiny', object: 'model' },
        0,
        expect.stringContaining('stopping'),
      ])
    } finally {
      delete process.env.HF_HUB_CACHE
    }
  })
})

describe('looplm quantize', () => {
  it('writes a folder that generates the same as quantizing at load', async () => {
    const config = { hidden_size: 64, intermediate_size: 96 }
    await writeOuroFolder(join(root, 'plain'), { config })
    const made = await start(['quantize', 'plain', 'small', '--bits', '4', '--group-size', '32'])
    expect(made).toEqual({ code: 0, signal: null, stdout: 'small: 4 bits, groups of 32\n', stderr: '' })
    const saved = JSON.parse(await readFile(join(root, 'small', 'config.json'), 'utf8'))
    expect(saved).toMatchObject({ torch_dtype: 'bfloat16', quantization_config: { bits: 4, group_size: 32 } })
    const generate = ['--prompt', 'the', '--max-new-tokens', '12', '--seed', '3', '--dtype', 'bfloat16', '--json']
    const fromFolder = await start(['generate', 'small', ...generate])
    const atLoad = await looplm(['generate', 'plain', ...generate, '--quantize', 'int4', '--group-size', '32'])
    expect(fromFolder.code, fromFolder.stderr).toBe(0)
    expect(atLoad).toEqual(fromFolder)
    expect(jsonLines(fromFolder.stdout)[0].tokens.length).toBeGreaterThan(0)
    const wrong = [
      [['quantize', 'plain', 'x'], /--bits/],
      [['quantize', 'plain', 'x', '--bits', '3'], /Allowed choices are 4, 8/],
      [['quantize', 'plain', 'x', '--bits', '8', '--asymmetric'], /--asymmetric goes with --bits 4/],
      [['quantize', 'plain', 'x', '--bits', '4'], /groups of 64 do not fit/],
      [['quantize', 'small', 'x', '--bits', '4'], /quantized already/],
      [['quantize', 'gone', 'x', '--bits', '4'], /no folder or file gone/],
      [
        ['quantize', 'plain', './plain/', '--bits', '4', '--group-size', '32'],
        /is the checkpoint itself and would be overwritten/,
      ],
      [['generate', 'plain', '--prompt', 'a', '--group-size', '32'], /groupSize needs a quantized model: pass quantize/],
    ] as const
    for (const [args, message] of wrong) {
      const { code, stderr } = await looplm(args)
      expect(stderr).toMatch(message)
      expect(code).toBe(2)
    }
    expect(existsSync(join(root, 'x'))).toBe(false)
  })
})

describe('looplm rejects, with exit code 2 and no stack trace,', () => {
  const commands: [string[], RegExp][] = [
    [['trian'], /unknown command 'trian'[\s\S]*train/],
    [['train'], /pass a configuration file, or continue a run with --resume RUN/],
    [['train', '--resume', 'nowhere'], /cannot read the configuration nowhere\/config\.yaml/],
    [['info', '--jsno'], /unknown option '--jsno'[\s\S]*--json/],
    [['generate', 'nowhere'], /give a --prompt, --messages to answer, or --prompts of a file/],
    [['generate', 'nowhere', '--messages', 'hi'], /--messages <list>.*list of messages such as/],
    [['eval', 'nowhere', '--chat-template', '5'], /--chat-template <settings>.*enable_thinking/],
    [['generate', 'nowhere', '--prompt', 'a', '--top-k', '-3'], /--top-k <count>.*natural number/],
    [['generate', 'nowhere', '--prompt', 'a'], /nowhere/],
    [
      ['generate', 'ouro', '--prompt', 'a', '--regex', 'a', '--json-schema', 'true'],
      /--json-schema .*cannot be used with .*--regex/,
    ],
    [['generate', 'ouro', '--prompt', 'a', '--regex', '('], /the regular expression "\(" has/],
    [['generate', 'ouro', '--prompt', 'a', '--json-schema', '{'], /--json-schema <schema>.*must be JSON such as/],
    [['generate', 'ouro', '--prompt', 'a', '--json-schema', '5'], /--json-schema <schema>.*object or true/],
    [['chat', 'nowhere', '--mode', 'auto', '--regex', 'a'], /--mode auto cannot be combined with .*--regex.*--mode no-think/],
    [['chat', 'ouro', '--grammar-file', 'nowhere.ebnf'], /--grammar-file <file>.*cannot be read \(ENOENT/],
    [['eval', 'nowhere'], /looplm eval: pass one of --task, --dataset and --text/],
    [['eval', 'nowhere', '--text', 't', '--save', 'out.jsonl'], /looplm eval: --save goes with --task or --dataset; omit it/],
    [['eval', 'nowhere', '--text', 't', '--max-new-tokens', '3'], /--max-new-tokens goes with --task or --dataset; omit it/],
    [['eval', 'nowhere', '--text', 't', '--chat'], /looplm eval: --chat goes with --dataset; omit it/],
    [['eval', 'nowhere', '--task', 'addition', '--split', 'test'], /looplm eval: --split goes with --dataset; omit it/],
    [['eval', 'nowhere', '--task', 'addition', '--context-length', '8'], /--context-length goes with --text; omit it/],
    [['eval', 'nowhere', '--task', 'adition'], /no task "adition"; the tasks are addition/],
    [
      ['generate', 'ouro', '--prompt', 'a', '--exit', 'never'],
      /--exit <rule>.*gate, fixed, sampled, hidden-delta, cosine, kl, kl-previous, entropy, entropy-change, argmax-stable/,
    ],
    [['generate', 'ouro', '--prompt', 'a', '--exit', 'kl'], /exit\.threshold must be .*got undefined/],
    [['serve', 'nowhere'], /nowhere/],
    [
      ['serve', 'ouro', '--host', '0.0.0.0'],
      /apiKey: is needed because host 0\.0\.0\.0 can be reached from other machines; .*LOOPLM_API_KEY/,
    ],
    [['serve', '.'], /no file config\.json: \. is not a checkpoint folder/],
    [['generate', 'runs/a', '--prompt', 'a'], /runs\/a is not a checkpoint folder; those of a run are in runs\/a\/checkpoints/],
    [['options', 'ppo'], /Allowed choices are rltt, grpo, objective, looprpt, pretrain/],
    [['report', 'nowhere'], /report: no run folder .*nowhere/],
    [['report', 'a', 'b'], /a comparison needs an output file.*--out/],
    [['watch', 'nowhere'], /report: no run folder .*nowhere/],
    [['watch', 'runs/a', '--port', '99999'], /--port <number>.*must be at most 65535/],
    [['report', 'ouro'], /report: ouro holds no run: it has neither metrics\.jsonl nor/],
    [['eval', 'ouro', '--task', 'addition', '--problems', '9007199254740991'], /--problems <count>.*must be at most 16777216/],
    [['train', 'nowhere.yaml'], /nowhere\.yaml: cannot read the configuration/],
  ]
  const wrong: [change: object, args: string[], RegExp][] = [
    [{ trainer: 'dpo' }, [], /trainer: .*"rltt"\|"grpo"\|"objective"\|"looprpt"\|"pretrain".*got "dpo"/],
    [{ modle: 'x' }, [], /modle: unknown option; did you mean model\?/],
    [{ options: { learning_rate: 1 } }, [], /learning_rate: unknown option; did you mean learningRate\?/],
    [{}, ['--set', 'steps'], /--set: must be key=value, got "steps"/],
    [{}, ['--set', 'steps=0'], /steps: .*>=1, got 0/],
    [{ task: undefined }, [], /needs exactly one of task, dataset and corpus/],
    [
      { evalDataset: 'rows', tokenizer: 'bytes', options: { contextLength: 8, assistantOnly: false } },
      [],
      /wrong\.yaml: 3 things are wrong\n {2}evalDataset: needs a dataset; .*\n {2}options\.contextLength: needs a corpus; .*\n {2}tokenizer: needs a dataset or a corpus \(a task has its own tokenizer\); set it, or omit tokenizer/,
    ],
    [{ model: { hidden_size: 16 } }, [], /intermediate_size/],
    [{}, ['--device', 'tpu'], /device must be one of 'cpu', 'reference', 'cuda'/],
    [{}, ['--resume'], /--resume needs a run folder/],
    [{ model: 'runs/a' }, ['--set', 'model.hidden_size=32'], /--set: model: is "runs\/a", which has no field hidden_size/],
    [
      { task: 'addition' },
      ['--set', 'task.digits=2'],
      /--set: task: is "addition", .* no field digits; write the task as { name: … }/,
    ],
    [
      { trainer: 'rltt', task: undefined, modle: 'x', steps: 3, options: { groupSize: 1, learning_rate: 1 } },
      ['--set', 'seed=-1'],
      /wrong\.yaml: 6 things are wrong\n {2}steps: an option of the trainer; write it below "options:"\n {2}modle: unknown option; did you mean model\?\n {2}options\.seed: .*got -1\n {2}options\.groupSize: .*got 1\n {2}options\.learning_rate: .*did you mean learningRate\?\n {2}needs exactly one of task/,
    ],
    [{}, ['--set', 'trainer.x=1'], /--set: trainer: is "pretrain", which has no field x/],
    [{}, ['--set', 'steps.x=1'], /--set: options\.steps: is 4, which has no field x/],
    [{ corpus: ['a'] }, ['--set', 'corpus.x=1'], /--set: corpus\.x: /],
    [{}, ['--set', 'batchSize=1000000000000'], /at most 16777216 rows or problems are read at a time, not 1000000000000; lower/],
  ]
  it.each(commands)('%j', async (args, message) => {
    expectRefusal(await looplm(args), message)
  })

  it.each(wrong)('a configuration with %j %j', async (change, args, message) => {
    expectRefusal(await looplm(['train', await writeConfig('wrong.yaml', change), ...args]), message)
  })

  it('a wrong command and a wrong configuration in a separate process', async () => {
    expectRefusal(await start(commands[0]![0]), commands[0]![1])
    expectRefusal(await start(['train', await writeConfig('wrong.yaml', wrong[0]![0])]), wrong[0]![2])
  })

  it('an empty LOOPLM_API_KEY, which is no option', () => {
    const env = { ...process.env, LOOPLM_API_KEY: '' }
    const { status, stdout, stderr } = spawnSync(process.execPath, [program, 'serve', 'nowhere'], { env, encoding: 'utf8' })
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toMatch(/the environment variable LOOPLM_API_KEY is empty; set it to a key, or unset it/)
  })

  it('a run whose checkpoints are a file', async () => {
    await looplm(['train', await writeConfig('spoilt.yaml'), '--run-dir', 'runs/spoilt'])
    await rm(join(root, 'runs/spoilt/checkpoints'), { recursive: true })
    await writeFile(join(root, 'runs/spoilt/checkpoints'), '')
    const refused = await looplm(['train', 'spoilt.yaml', '--run-dir', 'runs/spoilt', '--resume'])
    expectRefusal(
      refused,
      /run: cannot read runs\/spoilt\/checkpoints: a part of the path is a file, not a folder; choose another path \(ENOTDIR\)/,
    )
  })

  it('YAML that does not parse, naming the line', async () => {
    await writeFile(join(root, 'broken.yaml'), 'trainer: rltt\nmodel: [1,\n')
    expectRefusal(await looplm(['train', 'broken.yaml']), /broken\.yaml: .*line 3/)
  })
})

describe('reports', () => {
  it('are written to the run folder, or to the path of --out', async () => {
    await looplm(['train', await writeConfig('reported.yaml', { options: { ...config.options, steps: 2 } }), '--run-dir', 'one'])
    expect(await start(['report', 'one'])).toMatchObject({ code: 0, stdout: 'one/report.html\n' })
    expect(await looplm(['report', 'one', 'one', '--out', 'both.html'])).toMatchObject({ code: 0, stdout: 'both.html\n' })
    expect(await readFile(join(root, 'one', 'report.html'), 'utf8')).toMatch('<title>one – looplm</title>')
    expect(await readFile(join(root, 'both.html'), 'utf8')).toMatch('<title>one (1), one (2) – looplm</title>')
  })

  it('are served by looplm watch until Ctrl-C', async () => {
    const seen = new Set<string>()
    const { code, stdout } = await start(['watch', 'one'], (child, said) => {
      if (!said.endsWith('\n') || seen.has(said)) return
      seen.add(said)
      void fetch(said.trim()).then(async (answer) => {
        seen.add((await answer.text()).slice(0, 15))
        child.kill('SIGINT')
      })
    })
    expect(stdout).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/\n$/)
    expect(seen).toContain('<!doctype html>')
    expect(code).toBe(0)
  })
})
