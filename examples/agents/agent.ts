// What the agents of this folder share: how conversations are written, and how often an agent succeeds.
import { type EvaluateOptions, type Evaluation, evaluate, type LoopLM } from 'looplm'

/** How an agent is run. */
export interface AgentRun {
  /** 1: as documented; less makes fewer steps. */
  scale?: number
  seed?: number
  say?: (text: string) => void
}

/** Roles are one token each, and a turn of the model ends with `;;`. */
export const conversations = {
  marks: ['<tools>', '<|user|>', '<|model|>', '<|tool|>'],
  template:
    '{% if tools %}<tools>{% endif %}' +
    "{% for message in messages %}<|{{ 'model' if message.role == 'assistant' else message.role }}|>{{ message.content }}" +
    "{% if message.role == 'assistant' %};;{% endif %}{% endfor %}{% if add_generation_prompt %}<|model|>{% endif %}",
}

/** Greedy episodes on held-out problems, at full depth. */
export async function succeed(model: LoopLM, options: EvaluateOptions): Promise<Evaluation> {
  const [full] = await evaluate(model, { ...options, loops: [model.config.total_ut_steps] })
  return full!
}

export const percent = (value: number): string => `${(100 * value).toFixed(1)} %`

/** A share of successes with its interval. */
export function share({ reward, interval, problems }: Evaluation): string {
  return `${percent(reward)} of ${problems} held-out problems (95 % interval ${percent(interval.low)} to ${percent(interval.high)})`
}

export const before = (evaluation: Evaluation): string => `before reinforcement: ${share(evaluation)}`
