// Reads the settings of episodes from the options of a trainer or an evaluation.
import type { LoopLM } from '../model/model.js'
import type { EpisodesSettings } from './episodes.js'
import type { EpisodeConfig, PolicyConfig } from './options.js'
import type { ProblemSource } from './problems.js'
import { generation, type Sampling } from './rollout.js'
import { samplingOptions } from './sampling.js'

/** How a trainer samples turns and completions. `maxNewTokens` applies to a turn. */
export function samplingOf(source: ProblemSource, config: PolicyConfig): Sampling {
  return { ...generation(source, config.maxNewTokens), ...samplingOptions(config) }
}

/** The options of episodes. */
export type EpisodesConfig = Partial<EpisodeConfig> & Pick<PolicyConfig, 'environment' | 'tools'>

/** The settings of an environment's episodes. Options that `config` lacks have the defaults of trainers. */
export function episodesSettings(
  model: LoopLM,
  source: ProblemSource,
  config: EpisodesConfig,
  sampling: Sampling,
): EpisodesSettings {
  const { environment, tools = [], maxTurns = 8, reencode = false, branch } = config
  const { toolConcurrency = 16, toolTimeout = 30, environmentTimeout: timeout = 300 } = config
  const { max_position_embeddings: positions } = model.config
  const { tokenizer, chat } = source
  const turnEnd = chat.tokenizer.hasChatTemplate ? chat.tokenizer.chatEndToken() : undefined
  const stop = [...new Set([...(sampling.stop ?? []), ...(turnEnd === undefined ? [] : [turnEnd])])]
  return {
    ...{ environment: environment!, tools, tokenizer, chat, maxTurns, reencode, branch, toolConcurrency, toolTimeout, timeout },
    generation: { ...sampling, stop },
    maxEpisodeTokens: Math.min(config.maxEpisodeTokens ?? positions, positions),
    nameOf: (problem) => source.nameOf(problem),
  }
}
