// What a step of a run will compute, according to its options. `looplm plan` converts it to bytes and seconds.
import type { LoopLM } from '../model/model.js'
import { classicSchedule } from './classic-objective.js'
import { needsReference, onlyLastLoop, usesRatio, usesTeacher } from './objective/compile.js'
import type { Objective } from './objective/schema.js'
import { objectiveSchedule } from './objective-trainer.js'
import type { ClassicConfig, LoopRPTConfig, ObjectiveTrainerConfig, PolicyConfig, PretrainConfig } from './options.js'
import type { TrainerName } from './registry.js'

/** A pass of tokens through the model. */
export interface PlannedPass {
  tokens: number
  /** Number of loops that run. */
  loops: number
  /** Number of loops that the head reads per token. It is a fraction if the head only reads some of the tokens. */
  reads: number
  /** Number of loops that carry gradient. 0: only a forward pass. */
  backward: number
}

/** Completions that a step samples. */
export interface PlannedRollouts {
  prompts: number
  completions: number
  promptTokens: number
  /** Per completion; for an episode, all turns together. */
  newTokens: number
  loops: number
}

/** What one step computes, without evaluations, rewards and the optimizer. */
export interface PlannedStep {
  rollouts: PlannedRollouts | undefined
  passes: PlannedPass[]
  /** Number of additional models of the same size: frozen references, teachers, averages. An adapter's share the weights. */
  copies: number
  /** Whether training replays sampled exits. */
  replayExits: boolean
  /** Whether a moving average of what is trained is kept, which takes float32 for a bfloat16 model. */
  averaged: boolean
  /** Tokens of a row of data or of a rollout, including its prompt. */
  rowTokens: number
}

/** Lengths that are only known after reading the data. */
export interface PlannedLengths {
  promptTokens: number
  /** Tokens per completion, if the options do not set it. */
  newTokens: number
}

/**
 * @param options checked options of the trainer, with the `tokensPerMicroBatch` that is used
 * @param lengths of the data; a row that is learned has both together
 */
export function plannedStep(
  trainer: TrainerName,
  options: object,
  { loops }: LoopLM['architecture'],
  lengths: PlannedLengths,
): PlannedStep {
  if (trainer === 'pretrain') return pretraining(options as PretrainConfig, loops, lengths)
  if (trainer === 'looprpt') return latentSteps(options as LoopRPTConfig, loops, lengths)
  const schedule =
    trainer === 'objective'
      ? objectiveSchedule((options as ObjectiveTrainerConfig).objective)
      : classicSchedule(options as ClassicConfig)
  const first = schedule.at(0)
  if (typeof first === 'function') throw new TypeError('a file has no functions')
  return policyStep(options as PolicyConfig, first, schedule.reference(0), loops, lengths)
}

type Loops = Pick<PolicyConfig, 'loops' | 'readLoops' | 'backwardLoops'>

function loopsOf({ loops, readLoops, backwardLoops }: Loops, own: number): { run: number; reads: number; backward: number } {
  const run = readLoops?.at(-1) ?? loops ?? own
  const backward = typeof backwardLoops === 'number' ? Math.min(backwardLoops, run) : run
  return { run, reads: readLoops?.length ?? run, backward }
}

function policyStep(
  config: PolicyConfig,
  objective: Objective,
  reference: 'frozen' | 'ema' | undefined,
  own: number,
  { promptTokens, newTokens: usual }: PlannedLengths,
): PlannedStep {
  const { run, reads: all, backward } = loopsOf(config, own)
  const { promptsPerStep, gradientAccumulation, groupSize, updatesPerRollout, minibatches, logprobCheckEvery, lora } = config
  const turns = config.environment === undefined ? 1 : config.maxTurns
  const newTokens = Math.min((config.maxNewTokens ?? usual) * turns, (config.maxEpisodeTokens ?? Infinity) - promptTokens)
  const prompts = promptsPerStep * gradientAccumulation
  const completions = prompts * groupSize
  const tokens = prompts * promptTokens + completions * newTokens // training runs a shared prompt once
  const apart = completions * (promptTokens + newTokens) // scoring runs it for every completion
  const last = onlyLastLoop(objective, 'conditional', run)
  const reads = last ? 1 : all
  const forward = (amount: number, read: number): PlannedPass => ({ tokens: amount, loops: run, reads: read, backward: 0 })
  const passes: PlannedPass[] = [{ tokens: tokens * updatesPerRollout, loops: run, reads, backward }]
  if (logprobCheckEvery > 0) passes.push(forward(apart / logprobCheckEvery, 1))
  if (updatesPerRollout * minibatches > 1 && usesRatio(objective, 'conditional')) passes.push(forward(apart, reads))
  if (needsReference(objective)) passes.push(forward(apart, usesTeacher(objective) || objective.kl?.loops !== 'last' ? all : 1))
  return {
    rollouts: { prompts, completions, promptTokens, newTokens, loops: run },
    passes,
    copies: reference !== undefined && lora === undefined ? 1 : 0,
    averaged: reference === 'ema',
    replayExits: objective.exits === 'sampled',
    rowTokens: promptTokens + newTokens,
  }
}

function rowTokens(config: { corpus?: unknown; contextLength: number }, { promptTokens, newTokens }: PlannedLengths): number {
  return config.corpus === undefined ? promptTokens + newTokens : config.contextLength
}

function pretraining(config: PretrainConfig, own: number, lengths: PlannedLengths): PlannedStep {
  const { run, reads, backward } = loopsOf(config, own)
  const row = rowTokens(config, lengths)
  const tokens = config.batchSize * row
  const read = config.weights === 'last' ? 1 : reads
  const pass = { tokens, loops: run, reads: read, backward: config.stage === 2 ? 0 : backward }
  return { rollouts: undefined, passes: [pass], copies: 0, averaged: false, replayExits: false, rowTokens: row }
}

/**
 * Counts as native/engine/looprpt.cpp does: the first loop once, the clean pass, and the noisy rollouts from the second loop
 * on.
 */
function latentSteps(config: LoopRPTConfig, loops: number, lengths: PlannedLengths): PlannedStep {
  const { batchSize, rollouts, rho, tokensPerMicroBatch } = config
  const row = rowTokens(config, lengths)
  const tokens = batchSize * row
  const noisy = config.noiseSite === 'state' ? loops - 1 : loops
  const read = rho * loops // only of hard tokens
  const passes: PlannedPass[] = [
    { tokens, loops, reads: 1 + read, backward: 0 }, // the teacher
    { tokens, loops, reads: read, backward: loops },
    { tokens: tokens * rollouts, loops: noisy, reads: 2 * rho, backward: noisy },
  ]
  const again = rollouts * row > tokensPerMicroBatch
  if (again) passes.push({ tokens: tokens * (rollouts - 1), loops: noisy, reads: rho, backward: 0 })
  return {
    rollouts: undefined,
    passes,
    copies: config.lora === undefined ? 1 : 0,
    averaged: true,
    replayExits: false,
    rowTokens: row,
  }
}
