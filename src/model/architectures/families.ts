import type { Family } from './family.js'
import { hrmTextFamily } from './hrm-text.js'
import { nanbeigeFamily } from './nanbeige.js'
import { ravenFamily } from './raven.js'

const families: Readonly<Record<string, Family>> = {
  nanbeige: nanbeigeFamily,
  huginn_raven: ravenFamily,
  hrm_text: hrmTextFamily,
}

/** The family that a configuration names by its model_type; undefined for Ouro, and for models that looplm does not know. */
export function familyOf(config: unknown): Family | undefined {
  const type = (config as { model_type?: unknown } | null)?.model_type
  return typeof type === 'string' && Object.hasOwn(families, type) ? families[type] : undefined
}
