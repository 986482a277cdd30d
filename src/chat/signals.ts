// Signals that a model shows at the end of a prompt, before it answers.
import type { GenerateOptions } from '../model/types.js'

/** The signals of a prompt by which mode `auto` decides. Only signals with a threshold are measured. */
export interface ChatSignals {
  /** Entropy of the next token after the last loop, in nats, over its 64 most probable tokens. */
  entropy?: number
  /** The difference between that entropy and the one after the previous loop, in nats. */
  entropyChange?: number
  /**
   * The expected exit loop of the exit gate, 1-based: the mean over its distribution, with a resolution of (T - 1) / 16 of a
   * loop.
   */
  expectedLoops?: number
}

/** Mode `auto` thinks if a signal is above its threshold. */
export type ChatThresholds = ChatSignals

/** Names of the signals. */
export const signalNames = ['entropy', 'entropyChange', 'expectedLoops'] as const

/** How many of the most probable tokens an entropy is computed from. */
export const mostProbable = 64
const quantiles = 8

/** A token that is sampled only to measure a signal. */
interface Probe {
  signal: keyof ChatSignals
  exit: NonNullable<GenerateOptions['exit']>
}

/**
 * The exit rules whose first tokens give the signals. All use the same prompt, which runs once. The first one runs every loop.
 */
export function probesOf(wanted: ChatThresholds, loops: number): Probe[] {
  const probes: Probe[] = [{ signal: 'entropy', exit: { rule: 'fixed' } }]
  if (wanted.entropyChange !== undefined && loops > 1) {
    // An entropy never exceeds 64 nats, so the rule always holds and the token exits at minLoops.
    probes.push({ signal: 'entropyChange', exit: { rule: 'entropy', threshold: 64, minLoops: loops - 1 } })
  }
  if (wanted.expectedLoops !== undefined) {
    for (let k = 0; k < quantiles; k++)
      probes.push({ signal: 'expectedLoops', exit: { rule: 'gate', threshold: (k + 0.5) / quantiles } })
  }
  return probes
}

/** Computes the signals from the tokens of {@link probesOf}. */
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

/** Entropy in nats of a distribution, estimated from its most probable tokens. */
export function entropyOf(top: readonly { logprob: number }[]): number {
  const weights = top.map(({ logprob }) => Math.exp(logprob))
  const sum = weights.reduce((a, b) => a + b, 0)
  return -weights.reduce((total, w) => total + (w === 0 ? 0 : (w / sum) * Math.log(w / sum)), 0)
}

/** Whether any signal is above its threshold. */
export function wantsThought(signals: ChatSignals, thresholds: ChatThresholds): boolean {
  return signalNames.some((name) => (signals[name] ?? 0) > (thresholds[name] ?? Number.POSITIVE_INFINITY))
}
