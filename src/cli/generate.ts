import { extname } from 'node:path'
import { type Command, Option } from 'commander'
import type { ChatMessage } from '../data/chat-template.js'
import { loadDataset } from '../data/dataset.js'
import { decodeText, readLines } from '../data/lines.js'
import { promptProblem } from '../data/rows.js'
import { LoopLMError } from '../errors.js'
import { type ExitRule, exitRuleNames } from '../model/exit-rules.js'
import { stopTokens } from '../model/special-tokens.js'
import type { GenerateOptions, Prompt } from '../model/types.js'
import {
  type CacheFlags,
  cacheOptions,
  collect,
  finite,
  type ModelFlags,
  modelOptions,
  natural,
  nonNegative,
  openModel,
  positiveInteger,
} from './arguments.js'
import { type ChatFlags, chatOptions, chatSettings, conversation, encodeConversations } from './chat-flags.js'
import { type GrammarFlags, grammarOf, grammarOptions } from './grammar-flags.js'
import { interruptible, print, printJson } from './output.js'
import { joinProcesses, type ParallelFlags, parallelOption } from './processes.js'

/** The flags of {@link samplingOptions}. */
export interface SamplingFlags extends CacheFlags, GrammarFlags {
  maxNewTokens: number
  temperature: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  frequencyPenalty?: number
  presencePenalty?: number
  seed?: number
  loops?: number
  exit?: ExitRule['rule']
  exitThreshold?: number
  patience?: number
  minLoops?: number
  stop?: string[]
}

interface GenerateFlags extends ModelFlags, SamplingFlags, ChatFlags, ParallelFlags {
  prompt?: string[]
  messages?: ChatMessage[][]
  prompts?: string
  json?: boolean
}

const promptsPerCall = 1024 // bounds the KV cache

/** Adds `looplm generate`. */
export function addGenerate(program: Command): void {
  const command = program
    .command('generate')
    .description(
      'continue prompts with a checkpoint, and print the generated texts without the prompts, in the order of the prompts',
    )
    .argument('<model>', 'checkpoint folder, GGUF file, or name of a downloaded model, with a tokenizer')
    .option('--prompt <text>', 'prompt; may be repeated', collect)
    .option(
      '--messages <list>',
      'a conversation to answer, such as "[{ role: user, content: Hi }]"; may be repeated',
      conversation,
    )
    .option('--prompts <file>', '.txt file with one prompt per line, or a dataset with prompts (.jsonl, .json, .csv, .parquet)')
    .addOption(parallelOption())
    .option('--json', 'write one JSON object per prompt to standard output and nothing else')
  samplingOptions(command, 64, "string that ends an answer, instead of the model's end tokens; may be repeated")
  chatOptions(command)
  modelOptions(command).action(generate)
}

/** Adds the options for sampling. @param longest default of --max-new-tokens @param stop description of --stop */
export function samplingOptions(command: Command, longest: number, stop: string): Command {
  command
    .option('--max-new-tokens <count>', 'longest continuation', positiveInteger, longest)
    .option('--temperature <number>', 'sampling temperature; 0 is greedy', nonNegative, 1)
    .option('--top-k <count>', 'sample from the k most likely tokens', natural)
    .option('--top-p <share>', 'sample from the smallest set of most likely tokens with this probability', nonNegative)
    .option('--min-p <share>', 'sample from tokens with at least this share of the largest probability', nonNegative)
    .option(
      '--repetition-penalty <number>',
      'divides the logits of tokens that the text already has; 1 turns it off',
      nonNegative,
    )
    .option(
      '--frequency-penalty <number>',
      'lowers the logit of a token for each time that it was sampled; 0 turns it off',
      finite,
    )
    .option('--presence-penalty <number>', 'lowers the logits of tokens that were sampled; 0 turns it off', finite)
    .option('--seed <number>', 'seed of the draws', natural)
    .option('--loops <count>', "loops per token (default: the model's)", positiveInteger)
    .addOption(
      new Option('--exit <rule>', 'rule that decides after which loop a token exits (default: gate)').choices(exitRuleNames),
    )
    .option(
      '--exit-threshold <number>',
      'threshold of the exit rule; for gate a cumulative exit probability, 1 is full depth',
      nonNegative,
    )
    .option('--min-loops <count>', 'fewest loops of a token', positiveInteger)
    .option(
      '--patience <count>',
      'rule argmax-stable: how often in a row the most likely token must stay the same',
      positiveInteger,
    )
  command.option('--stop <text>', stop, collect)
  return cacheOptions(grammarOptions(command))
}

async function generate(folder: string, flags: GenerateFlags): Promise<void> {
  const { prompt = [], messages = [], json } = flags
  const ranks = await joinProcesses({ backend: flags.parallel })
  const given: (string | ChatMessage[])[] = [...prompt, ...messages, ...(await promptsOf(flags.prompts))]
  if (given.length === 0)
    throw new LoopLMError('INVALID_ARGUMENT', 'looplm generate: give a --prompt, --messages to answer, or --prompts of a file')
  using model = await openModel(folder, flags)
  const chats = given.some((one) => typeof one !== 'string') || chatSettings(flags) !== undefined
  const prompts: readonly Prompt[] = chats ? await encodeConversations(model.tokenizer, given, flags) : (given as string[])
  const ends = chats && flags.stop === undefined ? { stop: stopTokens(model, model.tokenizer!) } : {}
  await interruptible(async (signal) => {
    const options = { ...generationOptions(flags), ...ends, signal }
    if (!json && prompts.length === 1 && ranks.size === 1) {
      for await (const { text } of model.stream(prompts[0]!, options)) process.stdout.write(text ?? '')
      print('')
      return
    }
    for (let start = 0; start < prompts.length; start += promptsPerCall) {
      const part = prompts.slice(start, start + promptsPerCall)
      const results = await ranks.rows('generate', ranks.strided(part.length), (own) => {
        const sequenceNumbers = own.map((i) => start + i)
        return model.generate(
          own.map((i) => part[i]!),
          { ...options, sequenceNumbers },
        )
      })
      for (const [i, result] of results.entries()) {
        if (json) printJson({ prompt: given[start + i], ...result, logprobs: Array.from(result.logprobs) })
        else print(`${result.text}`)
      }
    }
  })
}

/** The prompts of a file: its lines, or the prompts of a dataset's rows. */
async function promptsOf(path: string | undefined): Promise<(string | ChatMessage[])[]> {
  if (path === undefined) return []
  const operation = 'looplm generate'
  const refuse = (problem: string) => new LoopLMError('INVALID_FILE', `${path}: ${problem}`, { operation })
  if (extname(path) !== '.txt') {
    return (await loadDataset(path)).map((row, i) => {
      const problem = promptProblem(row)
      if (problem !== undefined) throw refuse(`row ${i} ${problem}`)
      return row.prompt as string | ChatMessage[]
    })
  }
  const lines: string[] = []
  for await (const some of readLines(path, { operation, remedy: '; write one prompt per line' }))
    for (const { bytes, line } of some) lines.push(decodeText(bytes, path, `line ${line}`, operation).replace(/\r$/, ''))
  const empty = lines.indexOf('')
  if (lines.length > 0 && empty === -1) return lines
  throw refuse(lines.length === 0 ? 'holds no prompt' : `line ${empty + 1} is empty; write one prompt per line`)
}

/** The generation options that were given. */
export function generationOptions(flags: SamplingFlags): GenerateOptions {
  const { maxNewTokens, temperature, topK, topP, minP, seed, loops, kv, cacheType, speculate, stop, minLoops } = flags
  const { repetitionPenalty, frequencyPenalty, presencePenalty, exitThreshold: threshold, patience } = flags
  const chosen = flags.exit !== undefined || [threshold, minLoops, patience].some((value) => value !== undefined)
  const exit = chosen ? definedOnly({ rule: flags.exit ?? 'gate', threshold, minLoops, patience }) : undefined
  const sampling = { temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, seed }
  const grammar = grammarOf(flags)
  return definedOnly({ maxNewTokens, ...sampling, loops, kv, cacheType, speculate, stop, exit, grammar }) as GenerateOptions
}

function definedOnly(fields: object): object {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}
