export function wrapText(text: string, options?: { width?: number; indent?: string }): string
