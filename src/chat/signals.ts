// What a model shows at the end of a prompt, before it answers.
import type { GenerateOptions } from '../model/types.js'

/** What mode `auto` knows of a prompt when it decides. Only what has a threshold is measured. */
export interface ChatSignals {
  /** Of the next token after the last loop, in nats, over its 64 most probable tokens. */
  entropy?: number
  /** How much that entropy differs from the one a loop before, in nats. */
  entropyChange?: number
  /** Loop at which the exit gate expects to leave, 1-based: the mean over its distribution, to (T - 1) / 16 of a loop. */
  expectedLoops?: number
}

/** Mode `auto` thinks where a signal is above its threshold. */
export type ChatThresholds = ChatSignals

/** Names of the signals. */
export const signalNames = ['entropy', 'entropyChange', 'expectedLoops'] as const

/** Most probable tokens that an entropy is computed from. */
export const mostProbable = 64
const quantiles = 8

/** A token that is sampled to read how the model came to it. */
interface Probe {
  signal: keyof ChatSignals
  exit: NonNullable<GenerateOptions['exit']>
}

/**
 * The exits whose first tokens tell the signals. All begin at the same prompt, which runs once for them; the first one runs every loop.
 */
export function probesOf(wanted: ChatThresholds, loops: number): Probe[] {
  const probes: Probe[] = [{ signal: 'entropy', exit: { rule: 'fixed' } }]
  if (wanted.entropyChange !== undefined && loops > 1) {
    // Every entropy is below that of 2^64 tokens, so the token leaves where the rule is first asked.
    probes.push({ signal: 'entropyChange', exit: { rule: 'entropy', threshold: 64, minLoops: loops - 1 } })
  }
  if (wanted.expectedLoops !== undefined) {
    for (let k = 0; k < quantiles; k++)
      probes.push({ signal: 'expectedLoops', exit: { rule: 'gate', threshold: (k + 0.5) / quantiles } })
  }
  return probes
}

/** The signals that the tokens of {@link probesOf} tell. */
export function signalsOf(
  wanted: ChatThresholds,
  probes: readonly Probe[],
  tokens: readonly { loop: number; topLogprobs: readonly { logprob: number }[] }[],
): ChatSignals {
  const of = (signal: keyof ChatSignals) => tokens.filter((_, i) => probes[i]!.signal === signal)
  const entropy = entropyOf(tokens[0]!.topLogprobs)
  const before = of('entropyChange')[0]
  const leaving = of('expectedLoops').map(({ loop }) => loop)
  return {
    ...(wanted.entropy === undefined ? {} : { entropy }),
    ...(wanted.entropyChange === undefined
      ? {}
      : { entropyChange: before === undefined ? 0 : Math.abs(entropy - entropyOf(before.topLogprobs)) }),
    ...(wanted.expectedLoops === undefined ? {} : { expectedLoops: leaving.reduce((sum, loop) => sum + loop, 0) / quantiles }),
  }
}

/** Entropy of a distribution in nats, as far as its most probable tokens tell. */
export function entropyOf(top: readonly { logprob: number }[]): number {
  const weights = top.map(({ logprob }) => Math.exp(logprob))
  const sum = weights.reduce((a, b) => a + b, 0)
  return -weights.reduce((total, w) => total + (w === 0 ? 0 : (w / sum) * Math.log(w / sum)), 0)
}

/** Whether any signal is above its threshold. */
export function wantsThought(signals: ChatSignals, thresholds: ChatThresholds): boolean {
  return signalNames.some((name) => (signals[name] ?? 0) > (thresholds[name] ?? Number.POSITIVE_INFINITY))
}
