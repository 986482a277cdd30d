import { stringify } from 'yaml'
import { formatDuration, formatNumber } from '../monitor/progress.js'
import type { RunData } from '../monitor/report-data.js'

/**
 * The README.md of an exported model: its origin, its training, its results. The license is left to the user.
 *
 * @param state of the checkpoint
 * @param run the data of its run folder, if it has one
 */
export function modelCard(
  title: string,
  state: { trainer: string; step: number; config: object },
  run: RunData | undefined,
): string {
  const base = run?.options.model
  const adapter = (state.config as { lora?: unknown }).lora !== undefined
  const head = {
    library_name: adapter ? 'peft' : 'looplm',
    ...(base !== undefined && { base_model: base }),
    tags: ['looplm', 'looped-transformer', state.trainer],
  }
  const { facts } = run ?? {}
  const about = [
    ['base model', base ?? originOf(run)],
    ['trainer', state.trainer],
    ['steps', String(state.step)],
    ['data', facts?.data],
    [
      'parameters',
      facts &&
        (facts.trained === facts.parameters
          ? formatNumber(facts.parameters)
          : `${formatNumber(facts.parameters)}, ${formatNumber(facts.trained)} trained`),
    ],
    ['trained in', facts && `${facts.dtype} on ${facts.device}${run?.seconds == null ? '' : `, ${formatDuration(run.seconds)}`}`],
  ].filter((row): row is [string, string] => row[1] != null)
  const evaluations = run === undefined ? [] : evaluationRows(run, state.step)
  const options = Object.entries(state.config).map(([name, value]) => [`\`${name}\``, `\`${JSON.stringify(value)}\``])
  return [
    `---\n${stringify(head)}# Add your license, for example "license: apache-2.0".\n---\n`,
    `# ${title}\n`,
    `${adapter ? 'An adapter of a' : 'A'} looped language model, trained with [looplm](https://www.npmjs.com/package/looplm).\n`,
    table(['', ''], about),
    '## License\n',
    'No license was set. Add one above and here; a base model or a dataset may ask for its own.\n',
    ...(evaluations.length === 0
      ? []
      : [
          '## Evaluation\n',
          `Held-out data at step ${state.step}; intervals of 95 %.\n`,
          table(['metric', 'value', 'interval'], evaluations),
        ]),
    '## Options\n',
    table(['option', 'value'], options),
    '## Use\n',
    `\`\`\`sh\nnpx looplm generate ${adapter ? 'BASE --adapter FOLDER' : 'FOLDER'} --prompt …\n\`\`\`\n`,
  ].join('\n')
}

/** Where a run without a base model has its parameters from. */
function originOf(run: RunData | undefined): string {
  // `looplm train` writes the fields of a config.json for a new model, code nothing about its model
  if (Object.keys(run?.options ?? {}).some((name) => name.startsWith('model.'))) return 'none: trained from its first parameters'
  return run?.trainer == null ? 'unknown' : 'unknown: the run was started in code'
}

/** The evaluation at a step, one line per metric. */
function evaluationRows(run: RunData, step: number): string[][] {
  return Object.entries(run.curves).flatMap(([name, { steps, values, low, high }]) => {
    const place = steps.indexOf(step)
    if (place === -1 || !/^eval\/.*(reward|accuracy|loss)$/.test(name)) return []
    const interval =
      low === undefined || high === undefined ? '' : `${formatNumber(low[place]!)} to ${formatNumber(high[place]!)}`
    return [[`\`${name}\``, formatNumber(values[place]!), interval]]
  })
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line), ''].join('\n')
}
