// When a token exits: the options of every rule. The engine implements them in native/engine/generation/exit_rule.cpp.
import { checkNumber, checkOptions, checkWord, type Keys } from '../validation/arguments.js'

/** The first loop at which a token may exit. */
interface MinLoops {
  /** The smallest number of loops of a token. Defaults to 1. */
  minLoops?: number
}

/** A rule with a threshold. */
interface Threshold extends MinLoops {
  /** The value at which the rule holds. The default depends on the rule. */
  threshold?: number
}

/** A rule with a required threshold. */
interface GivenThreshold extends MinLoops {
  /** The value at which the rule holds. */
  threshold: number
}

/** A rule that must hold several times in a row. */
interface Patience extends MinLoops {
  /** How often in a row the rule must hold. Defaults to 1; Huginn's value is 5. */
  patience?: number
}

/**
 * When a token exits: after the first loop at which the rule holds, but not before `minLoops`, and at the latest after the last
 * loop (option `loops`). h is register 0 after a loop: Ouro's state after the norm, Huginn's state before its coda. P =
 * softmax(logits) at temperature 1. Prompts run at full depth. Default thresholds are Huginn's (arXiv 2502.05171, Raven's
 * public code).
 */
export type ExitRule =
  | {
      /** Every token runs all loops. */
      rule: 'fixed'
    }
  | ({
      /**
       * Exits when the cumulative exit probability reaches `threshold`. 1 or more means full depth (Ouro, arXiv 2510.25741,
       * §3). Needs an exit gate. Defaults to the configuration's `early_exit_threshold`.
       */
      rule: 'gate'
    } & Threshold)
  | {
      /**
       * Draws each token's exit loop from its exit distribution by (seed, sequence, position), at any temperature. Needs an
       * exit gate. The recipe `exit-sampled` trains this policy (docs/objectives.md).
       */
      rule: 'sampled'
    }
  | ({
      /** The state has settled: |h_t - h_(t-1)| ≤ threshold · |h_t|, t ≥ 2. Defaults to 0.03. */
      rule: 'hidden-delta'
    } & Threshold)
  | ({
      /** The state has settled: 1 - cos(h_t, h_(t-1)) ≤ threshold, t ≥ 2. Defaults to 0.001. */
      rule: 'cosine'
    } & Threshold)
  | ({
      /** The prediction is certain: its entropy is at most threshold, in nats. Runs the head after every loop. */
      rule: 'entropy'
    } & GivenThreshold)
  | ({
      /**
       * The prediction's entropy has settled: |H(P_t) - H(P_(t-1))| ≤ threshold, in nats, t ≥ 2. Defaults to 0.001. Runs
       * the head after every loop.
       */
      rule: 'entropy-change'
    } & Threshold)
  | ({
      /** The prediction has settled: KL(P_t || P_(t-1)) ≤ threshold, in nats, t ≥ 2. Runs the head after every loop. */
      rule: 'kl'
    } & GivenThreshold)
  | ({
      /**
       * The prediction has settled: KL(P_(t-1) || P_t) ≤ threshold, in nats, where P_0 is uniform. Defaults to 0.001; the
       * paper uses 0.0005. Runs the head after every loop.
       */
      rule: 'kl-previous'
    } & Threshold)
  | ({
      /**
       * The most probable token is the same as after the previous loop, `patience` times in a row. Runs the head after every
       * loop.
       */
      rule: 'argmax-stable'
    } & Patience)

/** Which options a rule takes besides `rule`. */
interface RuleOptions {
  threshold?: { above: number; default?: number } | { min: number; default?: number }
  minLoops?: true
  /** The default patience, if the rule takes one. */
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

/** The rule in the form that the engine takes. */
export interface NativeExit {
  rule: string
  threshold: number
  minLoops: number
  patience: number
}

/** @param configured the gate's threshold in the model's configuration */
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
