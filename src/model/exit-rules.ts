// When a token leaves the loops: the options of every rule, once. The engine's side is native/engine/generation/exit_rule.cpp.
import { checkNumber, checkOptions, checkWord, type Keys } from '../validation/arguments.js'

/** From which loop on a token may leave. */
interface MinLoops {
  /** Fewest loops of a token. Default: 1. */
  minLoops?: number
}

/** A rule with a threshold. */
interface Threshold extends MinLoops {
  /** The value at which the rule holds; default that of the rule. */
  threshold?: number
}

/** A rule whose threshold has no default. */
interface GivenThreshold extends MinLoops {
  /** The value at which the rule holds. */
  threshold: number
}

/** A rule that must hold several times. */
interface Patience extends MinLoops {
  /** How often in a row the rule must hold; default 1, Huginn's is 5. */
  patience?: number
}

/**
 * When a token leaves the loops: after the first loop, not before `minLoops`, at which the rule holds, and after the last loop (`loops`
 * of the options) in any case. h is register 0 after a loop: Ouro's normed state, Huginn's state before its coda. P = softmax(logits) at
 * temperature 1. The prompt runs at full depth. Defaults of thresholds are Huginn's (arXiv 2502.05171, Raven's public code).
 */
export type ExitRule =
  | {
      /** Always after the last loop. */
      rule: 'fixed'
    }
  | ({
      /**
       * The cumulative exit probability has reached `threshold`; 1 or more is full depth (Ouro, arXiv 2510.25741, §3). For models with
       * an exit gate. Default: the configuration's `early_exit_threshold`.
       */
      rule: 'gate'
    } & Threshold)
  | {
      /**
       * Each token's loop is drawn from its exit distribution by (seed, sequence, position), whatever the temperature. For models with
       * an exit gate. It is the policy that the recipe `exit-sampled` trains (docs/objectives.md).
       */
      rule: 'sampled'
    }
  | ({
      /** The state has settled: |h_t - h_(t-1)| ≤ threshold · |h_t|, t ≥ 2. Default 0.03. */
      rule: 'hidden-delta'
    } & Threshold)
  | ({
      /** The state has settled: 1 - cos(h_t, h_(t-1)) ≤ threshold, t ≥ 2. Default 0.001. */
      rule: 'cosine'
    } & Threshold)
  | ({
      /** The prediction is certain: its entropy is at most threshold, in nats. Runs the head after every loop. */
      rule: 'entropy'
    } & GivenThreshold)
  | ({
      /**
       * The prediction's entropy has settled: |H(P_t) - H(P_(t-1))| ≤ threshold, in nats, t ≥ 2. Default 0.001. Runs the head after every
       * loop.
       */
      rule: 'entropy-change'
    } & Threshold)
  | ({
      /** The prediction has settled: KL(P_t || P_(t-1)) ≤ threshold, in nats, t ≥ 2. Runs the head after every loop. */
      rule: 'kl'
    } & GivenThreshold)
  | ({
      /**
       * The prediction has settled: KL(P_(t-1) || P_t) ≤ threshold, in nats, where P_0 is uniform. Default 0.001; the paper uses 0.0005.
       * Runs the head after every loop.
       */
      rule: 'kl-previous'
    } & Threshold)
  | ({
      /** The most probable token is that of the loop before, `patience` times in a row. Runs the head after every loop. */
      rule: 'argmax-stable'
    } & Patience)

/** What a rule takes besides `rule`. */
interface RuleOptions {
  threshold?: { above: number; default?: number } | { min: number; default?: number }
  minLoops?: true
  /** Its default. */
  patience?: number
}

const settles = (threshold: number): RuleOptions => ({ threshold: { min: 0, default: threshold }, minLoops: true })

export const exitRules: Readonly<Record<ExitRule['rule'], RuleOptions>> = {
  gate: { threshold: { above: 0 }, minLoops: true },
  fixed: {},
  sampled: {},
  'hidden-delta': settles(0.03),
  cosine: settles(0.001),
  kl: { threshold: { min: 0 }, minLoops: true },
  'kl-previous': settles(0.001),
  entropy: { threshold: { min: 0 }, minLoops: true },
  'entropy-change': settles(0.001),
  'argmax-stable': { minLoops: true, patience: 1 },
}
export const exitRuleNames = Object.keys(exitRules) as ExitRule['rule'][]

/** The rule as the engine takes it. */
export interface NativeExit {
  rule: string
  threshold: number
  minLoops: number
  patience: number
}

/** @param configured the threshold of the gate that the configuration names */
export function readExit(exit: ExitRule | undefined, configured: number, operation: string): NativeExit {
  const rule = exit === undefined ? 'gate' : checkWord(exit?.rule, 'exit.rule', exitRuleNames, operation)
  const options = exitRules[rule]
  const fields = { rule: true, ...options } as unknown as Keys<ExitRule>
  if (exit !== undefined) checkOptions<ExitRule>(exit, fields, operation, 'exit')
  const given = (exit ?? {}) as { threshold?: number; minLoops?: number; patience?: number }
  const count = (name: 'minLoops' | 'patience', fallback: number) =>
    checkNumber(given[name] ?? fallback, `exit.${name}`, { min: 1, max: 64, integer: true }, operation)
  const fallback = rule === 'gate' ? configured : options.threshold?.default
  return {
    rule,
    threshold:
      options.threshold === undefined
        ? 0
        : checkNumber(given.threshold ?? fallback, 'exit.threshold', options.threshold, operation),
    minLoops: count('minLoops', 1),
    patience: count('patience', options.patience ?? 1),
  }
}
