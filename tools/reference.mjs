// Writes docs/configuration.md, docs/metrics.md and docs/command-line.md from the schemas, the list of metrics and the commands.
// --check only says whether they are current.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { trainConfigSchema } from '../dist/src/cli/train-config.js'
import { metricGroups } from '../dist/src/monitor/metric-catalogue.js'
import { resources, rlttOptions } from '../dist/src/rl/config.js'
import { trainerOptions, trainers } from '../dist/src/rl/registry.js'
import { schemaOptions } from '../dist/src/validation/schema-docs.js'
import { commandLine } from './command-line.mjs'
import { wrapText } from './wrap-text.mjs'
