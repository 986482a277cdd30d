// The three sources of rollouts: single turns, episodes of an environment, and the caller's own function.
import { Random } from '../data/random.js'
import type { LoopLM } from '../model/model.js'
import type { WeightedReward } from '../tasks/rewards.js'
import type { EpisodeRecord } from './episode.js'
import { environmentSeeds, playEpisodes } from './episodes.js'
import { episodesSettings, samplingOf } from './episodes-settings.js'
import type { PolicyConfig } from './options.js'
import type { ProblemSource } from './problems.js'
import { addRewards } from './rewards.js'
import { type RolloutSource, roundStreams, roundStride, seedStream, singleTurn } from './rollout.js'
import { callRollout, checkRollouts } from './rollout-function.js'
import type { Problem, Rollout } from './rollout-record.js'

/**
 * The source of a trainer's rollouts, according to its options.
 *
 * @param rewards returns those of the options or of the task; only called if they are needed
 */
export function rolloutSource(
  model: LoopLM,
  source: ProblemSource,
  rewards: () => readonly WeightedReward[],
  config: PolicyConfig,
): RolloutSource {
  if (config.rollout !== undefined) return functionSource(model, source, config)
  if (config.environment !== undefined) return episodeSource(model, source, config)
  return singleTurn(model, source, rewards(), config)
}

/** A problem of a step and its number in the step. */
interface Drawn {
  problem: Problem
  group: number
}

/** The problems of a step that this process samples. */
async function drawProblems(
  source: ProblemSource,
  config: PolicyConfig,
  { step, round, mine }: { step: number; round: number; mine: (group: number) => boolean },
): Promise<Drawn[]> {
  const count = config.promptsPerStep * config.gradientAccumulation
  const all = await source.take(round * roundStride + step * count, count)
  return all.map((problem, group) => ({ problem, group })).filter(({ group }) => mine(group))
}

/** Episodes of an environment. Their rewards are those of their turns and of the option `reward`. */
function episodeSource(model: LoopLM, source: ProblemSource, config: PolicyConfig): RolloutSource {
  const { groupSize } = config
  const settings = episodesSettings(model, source, config, samplingOf(source, config))
  return async (step, round, mine, signal) => {
    const start = performance.now()
    const problems = await drawProblems(source, config, { step, round, mine })
    const seeds = environmentSeeds(config.seed, step, round, config.promptsPerStep * config.gradientAccumulation)
    const seed = new Random(config.seed, step, seedStream + round * roundStreams).word()
    const seeded = problems.map(({ problem, group }) => ({ problem, seed: seeds[group]!, sequence: group * groupSize }))
    const drawn = { ...settings, generation: { ...settings.generation, seed } }
    const { records, metrics } = await playEpisodes(model, seeded, groupSize, drawn, signal)
    const seconds = (performance.now() - start) / 1000
    const rollouts = records.map((record, i) => rolloutOf(record, problems[Math.floor(i / groupSize)]!.problem))
    await addRewards(rollouts, config, signal)
    const tokens = rollouts.reduce((sum, { tokens }) => sum + tokens.length, 0)
    return { rollouts, cost: { completions: rollouts.length, tokens, seconds }, metrics }
  }
}

function rolloutOf(record: EpisodeRecord, columns: Problem): Rollout {
  const { tokens, mask, logprobs, messages, promptLength, loops, turns, reward, truncated, prompt, text } = record
  return {
    ...{ promptLength, loops, turns, reward, truncated, prompt, text, columns, scores: {} },
    tokens: Int32Array.from(tokens),
    mask: Uint8Array.from(mask),
    samplingLogprobs: Float64Array.from(logprobs),
    ...(messages === undefined ? {} : { messages }),
  }
}

/** Rollouts from the caller's own function. */
function functionSource(model: LoopLM, source: ProblemSource, config: PolicyConfig): RolloutSource {
  const { groupSize } = config
  return async (step, round, mine, signal = new AbortController().signal) => {
    const start = performance.now()
    const problems = (await drawProblems(source, config, { step, round, mine })).map(({ problem }) => problem)
    const seed = new Random(config.seed, step, seedStream + round * roundStreams).word()
    const sampling = { ...samplingOf(source, config), seed, signal }
    const { tokenizer } = source
    const context = { model, tokenizer, step, seed, groupSize, generation: sampling, signal }
    const made = await callRollout(config.rollout!, problems, context, `step ${step + 1}`)
    const { vocab_size: vocabulary, max_position_embeddings: maxLength } = model.config
    const rollouts = checkRollouts(made, { count: problems.length * groupSize, vocabulary, maxLength })
    const seconds = (performance.now() - start) / 1000
    await addRewards(rollouts, config, signal)
    const tokens = rollouts.reduce((sum, { tokens }) => sum + tokens.length, 0)
    return { rollouts, cost: { completions: rollouts.length, tokens, seconds } }
  }
}
