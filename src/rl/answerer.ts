// Answers held-out problems by episodes or by a caller's own function.
import type { LoopLM } from '../model/model.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { type EpisodesSettings, playEpisodes } from './episodes.js'
import type { ProblemSource } from './problems.js'
import { addRewards, type RewardOptions, scoreCompletions } from './rewards.js'
import { callRollout, checkRollouts, type RolloutFunction } from './rollout-function.js'
import type { Problem } from './rollout-record.js'
import { type Constrained, constrained } from './sampling.js'

/** A response with its measurements. */
export interface Answered {
  completion: string
  reward: number | null
  /** The number of tokens that the model wrote. */
  tokens: number
  cut: boolean
}

/** How problems are answered. */
export interface AnswerSettings {
  loops: number
  temperature: number
  seed: number
  signal: AbortSignal | undefined
}

/** Answers problems. Each response depends only on the seed and the problem's number. */
export type Answerer = (
  problems: readonly { problem: Problem; number: number }[],
  settings: AnswerSettings,
) => Promise<Answered[]>

/**
 * Answers problems by episodes. Their reward is the sum over their turns or, if there are reward functions, only theirs.
 *
 * @param rewards judge the text of the last turn
 */
export function episodeAnswerer(model: LoopLM, settings: EpisodesSettings, rewards: readonly WeightedReward[]): Answerer {
  return async (problems, { loops, temperature, seed, signal }) => {
    const seeded = problems.map(({ problem, number }) => ({ problem, seed: number, sequence: number }))
    const generation = { ...settings.generation, loops, temperature, seed, topK: 0, topP: 1 }
    const { records } = await playEpisodes(model, seeded, 1, { ...settings, branch: undefined, generation }, signal)
    const completions = records.map(({ prompt, text }, i) => ({ prompt, completion: text, columns: problems[i]!.problem }))
    const scored = rewards.length === 0 ? undefined : await scoreCompletions(rewards, completions, { signal })
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
  { tokenizer, maxNewTokens, stop, grammar }: Pick<ProblemSource, 'tokenizer' | 'maxNewTokens' | 'stop'> & Constrained,
  config: RewardOptions & { rollout: RolloutFunction },
  step: number,
): Answerer {
  return async (problems, { loops, temperature, seed, signal = new AbortController().signal }) => {
    const exit = { rule: 'fixed' } as const
    const generation = { maxNewTokens, stop, ...constrained({ grammar }), loops, temperature, seed, signal, exit }
    const context = { model, tokenizer, step, seed, groupSize: 1, generation, signal }
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
