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
 * Adds a family under its model_type, as `test/fixtures/two-registers.ts` describes one.
 * @internal
 */
export function registerFamily(type: string, family: Family): void {
  families.set(type, family)
}

/** The family that a configuration names by its model_type; undefined for Ouro, and for models that looplm does not know. */
export function familyOf(config: unknown): Family | undefined {
  const type = (config as { model_type?: unknown } | null)?.model_type
  return typeof type === 'string' ? families.get(type) : undefined
}
