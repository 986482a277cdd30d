// docs/command-line.md: the commands of the program with their options, as `--help` prints them.
import { readdirSync } from 'node:fs'
import { Command } from 'commander'
import { wrapText } from './wrap-text.mjs'

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`

/** The program with all of its commands. @param folder compiled src/cli */
async function program(folder) {
  const all = new Command('looplm')
  for (const file of readdirSync(folder).sort())
    if (file.endsWith('.js') && file !== 'main.js')
      for (const [name, add] of Object.entries(await import(new URL(file, folder).href))) if (/^add[A-Z]/.test(name)) add(all)
  return all
}

/** An option or an argument. Its choices and its default stand in one pair of brackets, also a default that the description names. */
function listItem(name, { description, defaultValue, argChoices }) {
  const [, text, named] = /^(.*?)(?: \((default: [^()]*)\))?$/s.exec(description)
  const value = defaultValue === undefined || typeof defaultValue === 'function' ? [] : [`default: ${defaultValue}`]
  const notes = [...(argChoices ? [`one of ${argChoices.join(', ')}`] : []), ...(named ? [named] : value)]
  return wrapText(`* \`${name}\`: ${text}${notes.length > 0 ? ` (${notes.join('; ')})` : ''}`, { indent: '  ' })
}

/** What `--help` says of a command behind its options, and another page explains. */
const further = { chat: 'Commands inside a chat: [chat.md](chat.md#in-the-terminal).' }

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
    wrapText(
      '`looplm COMMAND --help` prints what this page says of a command. Commands that print results take `--json`: they then write JSON to standard output and nothing else. Messages go to standard error. The exit status is 0 on success. It is 2 for what you can correct: the command line, a configuration, a file or a name. Other errors give 1. Ctrl-C gives 130, SIGTERM 143 and SIGHUP 129. `serve` and `watch` end with 0 when one of these stops them.',
    ),
    ...sorted.flatMap((command) => [
      '',
      `## looplm ${command.name()}`,
      '',
      wrapText(sentence(command.description())),
      '',
      '```text',
      `looplm ${command.name()} ${command.usage()}`,
      '```',
      ...(command.registeredArguments.length > 0 ? [''] : []),
      ...command.registeredArguments.map((argument) => listItem(argument.name(), argument)),
      ...(command.options.length > 0 ? [''] : []),
      ...command.options.map((option) => listItem(option.flags, option)),
      ...(Object.hasOwn(further, command.name()) ? ['', further[command.name()]] : []),
    ]),
  ]
}
