import type { LoopLM } from '../model/model.js'
import type { StateOptions } from '../model/types.js'
import type { ProblemSource } from './problems.js'
import type { Ranks } from './ranks.js'
import type { Problem, Rollout } from './rollout-record.js'

const sequencesPerCall = 64 // bounds the memory for scores

/**
 * The gain of each turn in the belief that the gold answer is right (IGPO, arXiv 2510.14967). b_k is the geometric mean of the
 * probabilities of the tokens of the column `answer`, teacher-forced at the start of turn k. Turn k gains φ(b_{k+1}) -
 * φ(b_k). The last turn, which answers, gains nothing, and neither do turns of a row without an answer.
 *
 * @param spec.prefix text that the model would write before the answer
 * @returns per rollout one number per turn
 */
export async function turnGains(
  model: LoopLM,
  source: ProblemSource,
  rollouts: readonly Rollout[],
  spec: { weight: number; value: 'probability' | 'log'; prefix: string },
  {
    ranks,
    loops,
    ...scoring
  }: { temperature: number; loops: number; signal: AbortSignal | undefined; ranks: Ranks } & Omit<StateOptions, 'initialStates'>,
): Promise<number[][]> {
  const encode = (text: string) => source.tokenizer.encode(text, { addSpecialTokens: false })
  const begins = rollouts.map(({ turns = [] }) => turns.map(({ begin }) => begin))
  const asked = rollouts.flatMap(({ tokens, columns }, i) => {
    const answer = answerOf(columns)
    if (answer === undefined || begins[i]!.length < 2) return []
    const forced = encode(spec.prefix + answer)
    const prefix = spec.prefix === '' ? 0 : Math.min(encode(spec.prefix).length, forced.length - 1)
    return begins[i]!.map((begin) => {
      const sequence = [...tokens.subarray(0, begin), ...forced]
      return { sequence, promptLength: begin + prefix }
    })
  })
  const most = model.config.max_position_embeddings
  const fitting = asked.filter(({ sequence }) => sequence.length <= most)
  const unique = new Map(fitting.map((one) => [`${one.promptLength} ${one.sequence.join(' ')}`, one]))
  const keys = [...unique.keys()]
  const values = await ranks.rows('gains', ranks.strided(keys.length), async (own) => {
    const logs: number[] = []
    for (let at = 0; at < own.length; at += sequencesPerCall) {
      const part = own.slice(at, at + sequencesPerCall).map((k) => unique.get(keys[k]!)!)
      const sequences = part.map(({ sequence }) => sequence)
      const promptLengths = part.map(({ promptLength }) => promptLength)
      const { logprobs } = await model.responseMeans(sequences, { ...scoring, promptLengths, loops })
      for (const row of logprobs) logs.push(row[loops - 1]!)
    }
    return logs
  })
  const beliefs = new Map(keys.map((key, k) => [key, values[k]!]))
  let next = 0
  return rollouts.map(({ columns }, i) => {
    const count = begins[i]!.length
    if (answerOf(columns) === undefined || count < 2) return begins[i]!.map(() => 0)
    const logs = asked.slice(next, next + count).map((one) => beliefs.get(`${one.promptLength} ${one.sequence.join(' ')}`))
    next += count
    const phi = (log: number) => (spec.value === 'log' ? log : Math.exp(log))
    return logs.map((log, k) => {
      const after = logs[k + 1]
      return log === undefined || after === undefined ? 0 : spec.weight * (phi(after) - phi(log))
    })
  })
}

function answerOf(columns: Problem): string | undefined {
  return typeof columns.answer === 'string' && columns.answer !== '' ? columns.answer : undefined
}
