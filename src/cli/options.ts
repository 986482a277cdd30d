import { Argument, type Command } from 'commander'
import { type TrainerName, trainerNames, trainerOptions } from '../rl/registry.js'
import { print, printJson } from './output.js'

/** Adds `looplm options`. */
export function addOptions(program: Command): void {
  program
    .command('options')
    .description('list the options of a trainer with their defaults')
    .addArgument(new Argument('<trainer>', 'trainer whose options to list').choices(trainerNames))
    .option('--json', 'write one JSON array to standard output and nothing else')
    .action((trainer: TrainerName, { json }: { json?: boolean }) => {
      const options = trainerOptions(trainer)
      if (json) {
        printJson(options)
        return
      }
      for (const option of options) {
        print(`${option.name}: ${option.type}${option.default === undefined ? '' : ` = ${option.default}`}`)
        print(`    ${option.description}`)
      }
    })
}
