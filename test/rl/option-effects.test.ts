// No option of a trainer is ignored. Every trainer with every option that it shares with others: test/long/option-effects.test.ts.
import { optionsHaveEffect } from '../options-have-effect.js'

optionsHaveEffect({ all: false })
