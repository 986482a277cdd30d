// Every option of every trainer changes what a short run does, also those that trainers share.
import { optionsHaveEffect } from '../options-have-effect.js'

optionsHaveEffect({ all: true })
