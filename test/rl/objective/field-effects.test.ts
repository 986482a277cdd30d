// No field of an objective is ignored.
import { describe } from 'vitest'
import { objectiveFieldsHaveEffect } from '../../options-have-effect.js'

describe('every field of an objective', objectiveFieldsHaveEffect)
