// Answers held-out problems by episodes or by a caller's own function.
import type { Tokenizer } from '../data/tokenizer.js'
import type { LoopLM } from '../model/model.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { playEpisodes } from './episodes.js'
import { type EpisodesConfig, episodesSettings } from './episodes-settings.js'
import type { ProblemSource } from './problems.js'
import { addRewards, type RewardLimits, type RewardOptions, scoreCompletions } from './rewards.js'
import type { Sampling } from './rollout.js'
import { callRollout, checkRollouts, type RolloutFunction } from './rollout-function.js'
import type { Problem } from './rollout-record.js'

/** A response with its measurements. */
export interface Answered {
  completion: string
  reward: number | null
  /** The number of tokens that the model wrote. */
  tokens: number
  cut: boolean
}

/**
 * Answers problems. Each response depends only on the seed and the problem's number.
 *
 * @param generation how the model writes, the same as in single completions
 */
export type Answerer = (
  problems: readonly { problem: Problem; number: number }[],
  generation: Sampling & { seed: number },
) => Promise<Answered[]>

/**
 * Answers problems by episodes. Their reward is the sum over their turns or, if there are reward functions, only theirs.
 *
 * @param rewards judge the text of the last turn
 */
export function episodeAnswerer(
  model: LoopLM,
  source: ProblemSource,
  config: EpisodesConfig & RewardLimits,
  rewards: readonly WeightedReward[],
): Answerer {
  return async (problems, { signal, ...generation }) => {
    const seeded = problems.map(({ problem, number }) => ({ problem, seed: number, sequence: number }))
    const settings = episodesSettings(model, source, { ...config, branch: undefined }, generation)
    const { records } = await playEpisodes(model, seeded, 1, settings, signal)
    const completions = records.map(({ prompt, text }, i) => ({ prompt, completion: text, columns: problems[i]!.problem }))
    const scored = rewards.length === 0 ? undefined : await scoreCompletions(rewards, completions, { ...config, signal })
    return records.map(({ text, reward, mask, truncated }, i) => ({
      completion: text,
      reward: scored === undefined ? reward : scored.rewards[i]!,
      tokens: mask.reduce((sum, own) => sum + own, 0),
      cut: truncated,
    }))
  }
}

/** Answers problems with a function that makes rollouts. The reward functions add to their rewards, as in training. */
export function functionAnswerer(
  model: LoopLM,
  tokenizer: Tokenizer,
  config: RewardOptions & { rollout: RolloutFunction },
  step: number,
): Answerer {
  return async (problems, { signal = new AbortController().signal, ...options }) => {
    const generation = { ...options, signal }
    const context = { model, tokenizer, step, seed: options.seed, groupSize: 1, generation, signal }
    const { vocab_size: vocabulary, max_position_embeddings: maxLength } = model.config
    const asked = problems.map(({ problem }) => problem)
    const answered = await callRollout(config.rollout, asked, context, `evaluation of step ${step}`)
    const made = checkRollouts(answered, { count: asked.length, vocabulary, maxLength })
    await addRewards(made, config, signal)
    return made.map(({ text, reward, tokens, promptLength, mask, truncated }) => ({
      completion: text,
      reward,
      tokens: mask === undefined ? tokens.length - promptLength : mask.reduce((sum, own) => sum + own, 0),
      cut: truncated,
    }))
  }
}
