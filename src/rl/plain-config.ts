import { resources, rewards } from './config-common.js'
import { rolloutResources } from './config-rollouts.js'
import { corpora } from './config-tokens.js'

const notData = new Set(['teacher'])

/** The part of a trainer's configuration that is plain data, for files. */
export function plainConfig(config: object): Record<string, unknown> {
  const entries = Object.entries(config).filter(
    ([key, value]) =>
      ![resources, corpora, rewards, rolloutResources].some((group) => key in group) &&
      !notData.has(key) &&
      typeof value !== 'function' &&
      value !== undefined,
  )
  return Object.fromEntries(entries)
}
