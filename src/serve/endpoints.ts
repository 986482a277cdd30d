// The handlers of POST requests, by path. A new endpoint needs its schema in request.ts, and an entry here.
import type { ServerResponse } from 'node:http'
import type { Answers } from './answers.js'
import { sendJson } from './http.js'
import { type Plan, planChat, planCompletion, type Served } from './plan.js'
import type { Metrics } from './prometheus.js'
import { parseChat, parseCompletion, parseEmbedding } from './request.js'

/** A request that is being computed. */
export interface Call {
  served: Served
  answers: Answers
  metrics: Metrics
  /** The body, parsed from JSON. */
  body: unknown
  response: ServerResponse
  /** Ends the request if the client disconnects or the request takes too long. */
  controller: AbortController
}

/**
 * The handlers by path.
 * @throws HttpError or LoopLMError
 */
export const endpoints: Readonly<Record<string, (call: Call) => Promise<void>>> = {
  '/v1/completions': async (call) => generate(call, await planCompletion(call.served, parseCompletion(call.body))),
  '/v1/chat/completions': async (call) => generate(call, await planChat(call.served, parseChat(call.body))),
  '/v1/embeddings': async ({ answers, body, response, controller }) =>
    sendJson(response, 200, await answers.embed(parseEmbedding(body), controller)),
}

async function generate({ answers, metrics, response, controller }: Call, plan: Plan): Promise<void> {
  controller.signal.throwIfAborted() // encoding a long text takes time
  metrics.promptTokens.add(plan.promptTokens)
  if (plan.cutTo !== undefined) response.setHeader('x-looplm-max-tokens', plan.cutTo)
  if (plan.stream) await answers.stream(plan, response, controller)
  else sendJson(response, 200, await answers.whole(plan, controller))
}
