import type { Family } from './family.js'
import { hrmTextFamily } from './hrm-text.js'
import { nanbeigeFamily } from './nanbeige.js'
import { ravenFamily } from './raven.js'

const families = new Map<string, Family>([
  ['nanbeige', nanbeigeFamily],
  ['huginn_raven', ravenFamily],
  ['hrm_text', hrmTextFamily],
])

/**
 * Adds a family under its model_type. `test/fixtures/two-registers.ts` is an example.
 * @internal
 */
export function registerFamily(type: string, family: Family): void {
  families.set(type, family)
}

/** The family that a configuration's model_type names. undefined for Ouro and for unknown models. */
export function familyOf(config: unknown): Family | undefined {
  const type = (config as { model_type?: unknown } | null)?.model_type
  return typeof type === 'string' ? families.get(type) : undefined
}
