import type { LoopLMConfig } from '../config.js'
import type { Architecture } from './architecture.js'
import { hrmTextFamily } from './hrm-text.js'
import { nanbeigeFamily } from './nanbeige.js'
import { ravenFamily } from './raven.js'

/** A family of looped models beside Ouro: one file that reads its config.json and describes what it computes. */
export interface Family {
  /** The published fields with every default filled in, and `aliases`. */
  parse(value: unknown, source: ConfigSource): LoopLMConfig
  describe(config: LoopLMConfig): Architecture
  /** Fields in Ouro's words that `parse` adds, so that sizes and loops have one name in every family; they are not saved. */
  aliases: readonly string[]
}

/** Where a configuration comes from. */
export interface ConfigSource {
  /** How errors name it. */
  name: string
  /** A file must say what a class default would get wrong. */
  fromFile: boolean
  /** Names of the checkpoint's tensors, which tell layouts apart that the configuration does not name; of a file. */
  tensors: readonly string[]
}

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
