// docs/command-line.md: the commands of the program with their options, as `--help` prints them.
import { readdirSync } from 'node:fs'
import { Command } from 'commander'

const width = 118

/** A text in lines of at most `width` characters; those after the first begin with `indent`. */
function wrap(text, indent = '') {
  const lines = []
  let line = ''
  for (const word of text.split(/\s+/)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = indent + word
    } else line += (line === '' || line === indent ? '' : ' ') + word
  }
  return [...lines, line]
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`

/** The program with all of its commands. @param folder compiled src/cli */
async function program(folder) {
  const all = new Command('looplm')
  for (const file of readdirSync(folder).sort())
    if (file.endsWith('.js') && file !== 'main.js')
      for (const [name, add] of Object.entries(await import(new URL(file, folder).href))) if (/^add[A-Z]/.test(name)) add(all)
  return all
}

function optionLines({ flags, description, defaultValue, argChoices }) {
  const notes = [
    ...(argChoices ? [`one of ${argChoices.join(', ')}`] : []),
    ...(defaultValue === undefined || typeof defaultValue === 'function' ? [] : [`default ${JSON.stringify(defaultValue)}`]),
  ]
  return wrap(
    `* \`${flags.replaceAll(' ', '\u00a0')}\`: ${description}${notes.length > 0 ? ` (${notes.join('; ')})` : ''}`,
    '  ',
  ).map((line) => line.replaceAll('\u00a0', ' '))
}

/** The lines of the page. */
export async function commandLine(folder) {
  const { commands } = await program(folder)
  const order = ['train', 'plan', 'estimate', 'eval', 'generate', 'chat', 'serve', 'download', 'quantize', 'watch', 'report']
  const place = (command) => (order.includes(command.name()) ? order.indexOf(command.name()) : order.length)
  const sorted = [...commands].sort((a, b) => place(a) - place(b) || a.name().localeCompare(b.name()))
  return [
    '# Command line',
    '',
    '<!-- Made by `npm run docs:reference`; do not edit. -->',
    '',
    '```text',
    'npx looplm COMMAND --help',
    '```',
    '',
    ...wrap(
      '`looplm COMMAND --help` prints what this page says of a command. Commands that print results take `--json`: they then write JSON to standard output and nothing else. Messages go to standard error. The exit status is 0 on success, 1 on an error, 2 for a wrong command line, and 130 after Ctrl-C.',
    ),
    ...sorted.flatMap((command) => [
      '',
      `## looplm ${command.name()}`,
      '',
      ...wrap(sentence(command.description())),
      '',
      '```text',
      `looplm ${command.name()} ${command.usage()}`,
      '```',
      ...(command.registeredArguments.length > 0 ? [''] : []),
      ...command.registeredArguments.flatMap((argument) => wrap(`* \`${argument.name()}\`: ${argument.description}`, '  ')),
      ...(command.options.length > 0 ? [''] : []),
      ...command.options.flatMap(optionLines),
    ]),
  ]
}
