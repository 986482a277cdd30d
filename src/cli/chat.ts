import { readFile, writeFile } from 'node:fs/promises'
import { createInterface, type Interface } from 'node:readline'
import { type Command, Option } from 'commander'
import pc from 'picocolors'
import { type ChatMode, type ChatPiece, type ChatTurnSettings, chatModes } from '../chat/options.js'
import { ChatSession } from '../chat/session.js'
import type { ChatTurn } from '../chat/turn.js'
import type { ChatMessage } from '../data/chat-template.js'
import { errorMessage, fileError, LoopLMError } from '../errors.js'
import { textOf } from '../files/read.js'
import { type ModelFlags, modelOptions, openModel } from './arguments.js'
import { type ChatFlags as TemplateFlags, templateOptions } from './chat-flags.js'
import { generationOptions, type SamplingFlags, samplingOptions } from './generate.js'
import { exitCodes, interruptedCode } from './output.js'

interface ChatFlags extends ModelFlags, SamplingFlags, TemplateFlags {
  mode?: ChatMode
  load?: string
  /** commander's form of --no-color */
  color: boolean
}

const operation = 'looplm chat'

const help = `/reset           forget the conversation, but not the system message
/system TEXT     set the system message and forget the conversation; without a text, none
/mode MODE       think, no-think, auto (from what the model shows at the end of the prompt) or default (the template decides)
/loops N         loops per token at most
/threshold P     exit when the cumulative exit probability reaches P; 1 is full depth
/save FILE       write the conversation, for --load
/exit            leave; Ctrl-C stops an answer, a second Ctrl-C leaves
`

/** Adds `looplm chat`. */
export function addChat(program: Command): void {
  const command = program
    .command('chat')
    .description('chat with a checkpoint in the terminal; the colour of a token shows the loop that it was read from')
    .argument('<model>', 'checkpoint folder, GGUF file, or name of a downloaded model, with a tokenizer and a chat template')
    .addOption(
      new Option('--mode <mode>', 'whether answers begin with thoughts (default: the template decides)').choices(chatModes),
    )
    .option('--load <file>', 'continue a conversation that /save wrote')
    .option('--no-color', 'plain text')
  templateOptions(command)
  samplingOptions(command, 1024, 'string that ends an answer, in addition to the end tokens; may be repeated')
  modelOptions(command)
    .addHelpText('after', `\nIn the chat:\n${help}`)
    .action(async (folder: string, flags: ChatFlags) => {
      process.exitCode = await chat(folder, flags)
    })
}

/** Chats until the input ends, and returns the exit code. */
async function chat(folder: string, flags: ChatFlags): Promise<number> {
  const generation = generationOptions(flags)
  if (generation.grammar !== undefined && (flags.mode === 'think' || flags.mode === 'auto')) {
    const message = `--mode ${flags.mode} cannot be combined with --json-schema, --regex or --grammar-file; pass --mode no-think`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const messages = flags.load === undefined ? undefined : await load(flags.load)
  using model = await openModel(folder, flags)
  if (!model.tokenizer?.hasChatTemplate && flags.chatTemplate?.template === undefined) {
    const message = `${folder} has no chat template. Pass one with --chat-template FILE.jinja, or use looplm generate, which needs none`
    throw new LoopLMError('UNSUPPORTED', message, { operation })
  }
  const { system, chatTemplate } = flags
  const given = { ...(system && { system }), ...(chatTemplate && { chatTemplate }), ...(messages && { messages }) }
  using session = new ChatSession(model, { ...generation, ...given })
  const { stdin, stdout } = process
  const terminal = stdin.isTTY === true && stdout.isTTY === true
  const paint = painter(flags.color && stdout.isTTY === true && pc.isColorSupported)
  const reader = createInterface({ input: stdin, ...(terminal ? { output: stdout } : {}), terminal, prompt: '> ' })
  if (terminal) {
    const loops = Array.from({ length: model.config.total_ut_steps }, (_, i) => paint(String(i + 1), i + 1))
    stdout.write(`${folder}: /help lists the commands; loops ${loops.join(' ')}\n`)
  }
  const talk = new Talk(session, reader, terminal, paint, flags.mode === undefined ? {} : { mode: flags.mode })
  try {
    await talk.run()
    if (terminal) stdout.write('\n')
    return exitCodes.ok
  } finally {
    reader.close()
  }
}

/** Reads lines, executes commands and writes responses. */
class Talk {
  readonly #session: ChatSession
  readonly #reader: Interface
  readonly #terminal: boolean
  readonly #paint: Paint
  #settings: ChatTurnSettings
  #answering: ChatTurn | undefined
  #pressed = false // whether Ctrl-C was pressed since the last line

  constructor(session: ChatSession, reader: Interface, terminal: boolean, paint: Paint, settings: ChatTurnSettings) {
    this.#session = session
    this.#reader = reader
    this.#terminal = terminal
    this.#paint = paint
    this.#settings = settings
  }

  /** Handles every line until one ends the chat. */
  async run(): Promise<void> {
    const interrupt = () => this.#interrupt()
    this.#reader.on('SIGINT', interrupt) // for a terminal in raw mode
    process.on('SIGINT', interrupt)
    if (this.#terminal) this.#reader.prompt()
    try {
      for await (const line of this.#reader) {
        this.#pressed = false
        const text = line.trim()
        if (/^\/(exit|quit)$/.test(text)) return
        try {
          if (text.startsWith('/')) process.stdout.write(await this.#command(text))
          else if (text !== '') await this.#answer(text)
        } catch (error) {
          if (!(error instanceof LoopLMError)) throw error
          process.stdout.write(`error: ${error.message}\n`)
        }
        this.#answering = undefined
        if (this.#terminal) this.#reader.prompt()
      }
    } finally {
      process.off('SIGINT', interrupt)
    }
  }

  #interrupt(): void {
    if (this.#pressed) process.exit(interruptedCode('SIGINT'))
    this.#pressed = true
    if (this.#answering !== undefined) this.#answering.stop()
    else process.stdout.write('\n(press Ctrl-C again or type /exit to leave)\n')
    if (this.#terminal && this.#answering === undefined) this.#reader.prompt()
  }

  /** Writes a response as it is generated, then a summary. */
  async #answer(text: string): Promise<void> {
    const start = performance.now()
    const counts: number[] = []
    const write = answerWriter(this.#paint)
    this.#answering = this.#session.stream(text, this.#settings)
    for await (const piece of this.#answering) {
      counts[piece.loop] = (counts[piece.loop] ?? 0) + 1
      write(piece)
    }
    const { finishReason, mode, signals } = await this.#answering.result()
    const seconds = (performance.now() - start) / 1000
    const end = { length: ', cut off at --max-new-tokens', cancelled: ', stopped', stop: '', 'tool-calls': '' }[finishReason]
    const shown = Object.entries(signals ?? {}).map(([name, value]) => `${name} ${value.toFixed(2)}`)
    const chosen = signals === undefined ? '' : `, ${mode} (${shown.join(', ')})`
    process.stdout.write(`\n${summary(counts, seconds, this.#paint)}${chosen}${end}\n`)
  }

  /** Executes a slash command and returns the text to print. */
  async #command(text: string): Promise<string> {
    const [, name, argument = ''] = /^\/(\S*)\s*(.*)$/s.exec(text)!
    const set = (settings: ChatTurnSettings) => {
      this.#settings = { ...this.#settings, ...settings }
      return ''
    }
    switch (name) {
      case 'help':
        return help
      case 'reset': {
        const [first] = this.#session.messages
        this.#session.reset(first?.role === 'system' ? [first] : [])
        return 'forgotten\n'
      }
      case 'system':
        this.#session.reset(argument === '' ? [] : [{ role: 'system', content: argument }])
        return 'forgotten\n'
      case 'loops':
        return set({ loops: numeric(argument, '/loops') })
      case 'threshold':
        return set({ exit: { rule: 'gate', threshold: numeric(argument, '/threshold') } })
      case 'mode':
        return this.#mode(argument)
      case 'save':
        return save(argument, this.#session.messages)
      default:
        return `unknown command /${name}; the commands are:\n${help}`
    }
  }

  #mode(argument: string): string {
    const chosen = chatModes.find((mode) => mode === argument)
    if (chosen === undefined && argument !== 'default') return `/mode takes ${chatModes.join(', ')} or default\n`
    const { mode: _, ...rest } = this.#settings
    this.#settings = chosen === undefined ? rest : { ...rest, mode: chosen }
    return ''
  }
}

/** Shows thoughts between the tags that the model wrote around them. */
function answerWriter(paint: Paint): (piece: ChatPiece) => void {
  let place: 'begin' | 'thought' | 'text' = 'begin'
  return ({ text, reasoning, loop }) => {
    let shown = ''
    if (reasoning !== '') {
      if (place !== 'thought') shown += `${place === 'text' ? '\n' : ''}<think>\n`
      shown += place === 'thought' ? reasoning : reasoning.trimStart()
      place = 'thought'
    }
    if (text !== '') {
      if (place === 'thought') shown += '\n</think>\n\n'
      shown += place === 'thought' ? text.trimStart() : text
      place = 'text'
    }
    process.stdout.write(paint(printable(shown), loop))
  }
}

async function load(path: string): Promise<ChatMessage[]> {
  const bytes = await readFile(path).catch((cause) => {
    throw fileError(cause, 'read', path, operation)
  })
  const text = textOf(bytes, path, operation)
  try {
    return JSON.parse(text)
  } catch (cause) {
    const message = `--load: ${path} is not JSON (${errorMessage(cause)}). Pass a file that /save wrote.`
    throw new LoopLMError('INVALID_FILE', message, { operation, cause })
  }
}

async function save(path: string, messages: readonly ChatMessage[]): Promise<string> {
  if (path === '') return '/save needs a file name, for example /save chat.json\n'
  await writeFile(path, `${JSON.stringify(messages, null, 2)}\n`).catch((cause) => {
    throw fileError(cause, 'write', path, '/save')
  })
  return `${messages.length} messages in ${path}\n`
}

/** `12 tokens, 3.25 loops each (2: 3, 4: 9), 31 tokens/s` */
function summary(counts: readonly number[], seconds: number, paint: Paint): string {
  const used = Object.entries(counts).map(([loop, count]) => ({ loop: Number(loop), count }))
  const tokens = used.reduce((sum, { count }) => sum + count, 0)
  if (tokens === 0) return 'no tokens'
  const mean = used.reduce((sum, { loop, count }) => sum + loop * count, 0) / tokens
  const each = used.map(({ loop, count }) => `${paint(String(loop), loop)}: ${count}`).join(', ')
  return `${tokens} tokens, ${mean.toFixed(2)} loops each (${each}), ${(tokens / seconds).toFixed(0)} tokens/s`
}

function numeric(text: string, name: string): number {
  const value = Number(text)
  if (text !== '' && Number.isFinite(value) && value > 0) return value
  throw new LoopLMError('INVALID_ARGUMENT', `needs a number above 0, got ${JSON.stringify(text)}`, { operation: name })
}

/** Replaces control characters, so that a model cannot send them to the terminal. */
function printable(text: string): string {
  return text.replaceAll(/[^\P{Cc}\n\t]/gu, '\ufffd')
}

type Paint = (text: string, loop: number) => string

/** Colours text by its loop: green is early, red is late. */
function painter(colored: boolean): Paint {
  const { green, cyan, yellow, red, magenta, blue } = pc.createColors(colored)
  const palette = [green, cyan, yellow, red, magenta, blue]
  return (text, loop) => (text === '' ? '' : palette[(loop - 1) % palette.length]!(text))
}
