// One rank of training runs: node test/trainer-rank.mjs SCENARIO,…. What it finds is a file of LOOPLM_RANK_FOLDER.
import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  addition,
  GRPOTrainer,
  LoopLM,
  LoopRPTTrainer,
  memory,
  ObjectiveTrainer,
  PretrainTrainer,
  parallel,
  RLTTTrainer,
} from '../dist/src/index.js'

const { LOOPLM_RANK_FOLDER: folder, LOOPLM_RUN_DIR: runDir, LOOPLM_RESUME: resume } = process.env
const steps = Number(process.env.LOOPLM_STEPS ?? 10)
const task = addition({ digits: 1 })
const device = process.env.LOOPLM_DEVICE ?? 'cpu'
const small = device === 'reference' // it takes a second for what the CPU does in milliseconds
const config = {
  vocab_size: task.tokenizer.vocabSize,
  hidden_size: Number(process.env.LOOPLM_WIDTH ?? (small ? 16 : 64)),
  intermediate_size: small ? 40 : 160,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  total_ut_steps: 3,
}
const sha = (...values) =>
  values
    .reduce((hash, value) => hash.update(value), createHash('sha256'))
    .digest('hex')
    .slice(0, 16)
const reward = async (_prompt, completion) => {
  await new Promise((resolve) => setTimeout(resolve, 1))
  return completion.charCodeAt(0) % 7
}
const policy = { task, reward, promptsPerStep: 5, groupSize: 4, learningRate: 1e-3, logprobCheckEvery: 3 }
const own = ({ sequences, promptLengths, advantages, lengthNormalizers, scores }) => {
  let loss = 0
  const coefficients = scores.logprobs.map((logprobs, i) => {
    const width = sequences[i].length - 1
    return logprobs.map((logprob, k) => {
      if (k % width < promptLengths[i] - 1) return 0
      loss -= lengthNormalizers[i] * advantages[i] * logprob
      return -lengthNormalizers[i] * advantages[i]
    })
  })
  return { loss, coefficients }
}

const exits = { channel: 'exit', draws: 3 }
const filtered = {
  filter: { minGroupStd: 0.5, dropTruncated: false, resample: 2 },
  terms: [{ advantage: { batch: true, strata: { by: 'length', blend: 0.5 } }, normalizer: 'token-mean' }, exits],
  kl: { beta: 0.02, reference: 'ema' },
  entropy: { exit: 0.01 },
}

/** What is trained: trainer, options. */
const scenarios = {
  pretrain: [PretrainTrainer, { task, batchSize: 10, learningRate: 1e-3 }],
  stage2: [PretrainTrainer, { task, stage: 2, batchSize: 10, learningRate: 1e-3 }],
  lora: [
    RLTTTrainer,
    { ...policy, lora: { rank: process.env.LOOPLM_WIDTH === undefined ? 4 : 64 }, beta: 0.05, learningRate: 1e-3 },
  ],
  looprpt: [LoopRPTTrainer, { task, batchSize: 7, rollouts: 4, learningRate: 1e-3, teacherDecay: 0.9 }],
  objective: [ObjectiveTrainer, { ...policy, objective: filtered }],
  updates: [GRPOTrainer, { ...policy, minibatches: 2, updatesPerRollout: 2, gradientAccumulation: 2, promptsPerStep: 2 }],
  own: [ObjectiveTrainer, { ...policy, objective: own }],
}

/** What one rank does wrong. */
const mistakes = (rank) => ({
  reward: [RLTTTrainer, { ...policy, reward: rank === 1 ? () => 'much' : reward }],
  objective: [ObjectiveTrainer, { ...policy, objective: rank === 1 ? () => ({ loss: NaN }) : own }],
  options: [PretrainTrainer, { task, seed: rank }],
  data: [PretrainTrainer, { task: rank === 1 ? addition({ digits: 2 }) : task }],
  model: [PretrainTrainer, { task }, { seed: rank }],
  folder: [PretrainTrainer, { task, runDir: '/dev/null/run' }],
})

/** The error of a run, of which the process goes on. */
async function fail(world, name) {
  const [Trainer, options, { seed = 1 } = {}] = mistakes(world.rank)[name]
  const model = await LoopLM.create(config, { seed, threads: 1 })
  const trainer = new Trainer(model, { ...options, steps: 2, onWarning: () => {} })
  try {
    for await (const _ of trainer.run());
    return { rank: world.rank }
  } catch ({ code, message }) {
    return { rank: world.rank, code, message }
  }
}

async function train(world, name) {
  const [Trainer, options] = scenarios[name]
  const model = await LoopLM.create(config, { seed: 1, threads: 1, device })
  const often = { evalEvery: 5, evalProblems: 9, evalLoops: [1, 3], saveEvery: 2 }
  const run = { ...options, ...often, steps, resume: resume !== undefined, onWarning: () => {} }
  const trainer = new Trainer(model, { ...run, ...(runDir === undefined ? {} : { runDir: join(runDir, name) }) })
  const events = []
  let first
  for await (const { completions, ...event } of trainer.run()) {
    if (completions !== undefined) first ??= sha(JSON.stringify(completions))
    events.push(event)
  }
  const names = (model.adapter?.parameters ?? model.parameters()).map((parameter) => parameter.name)
  const parameters = await Promise.all(names.map((parameter) => model.getParameter(parameter)))
  const values = world.rank === 0 ? parameters.flatMap((array) => Array.from(array)) : [] // the others have a checksum
  const held = memory().bytes
  trainer.dispose()
  model.dispose()
  return { rank: world.rank, first, events, hash: sha(...parameters), values, memory: held }
}

const world = await parallel.init({ timeout: 60 })
const found = {}
for (const name of process.argv[2].split(',')) {
  const [, mistake] = name.split(':')
  found[name] = mistake === undefined ? await train(world, name) : await fail(world, mistake)
}
writeFileSync(join(folder, `${world.rank}.json`), JSON.stringify(found))
