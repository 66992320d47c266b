/** The options of the playground's requests, as they are typed. */
export interface Options {
  system: string;
  temperature: string;
  maxTokens: string;
  topP: string;
  seed: string;
  n: string;
  tools: string;
  logprobs: boolean;
}

export const DEFAULTS: Options = { system: "", temperature: "1", maxTokens: "512", topP: "", seed: "", n: "1", tools: "", logprobs: false };
export const TOP_LOGPROBS = 5;

/** Return the fields of a request. Throws Error with a sentence for what can't be read. */
export function requestOptions(options: Options): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  const numbers: [keyof Options, string, string][] = [
    ["temperature", "temperature", "Temperature"],
    ["maxTokens", "max_tokens", "Most tokens"],
    ["topP", "top_p", "Top p"],
    ["seed", "seed", "Seed"],
    ["n", "n", "Answers"],
  ];
  for (const [option, field, label] of numbers) {
    const text = String(options[option]).trim();
    if (text === "") continue;
    const value = Number(text);
    if (!Number.isFinite(value)) throw new Error(`${label}: "${text}" isn't a number.`);
    fields[field] = value;
  }
  if (options.logprobs) Object.assign(fields, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  if (options.tools.trim()) fields["tools"] = readTools(options.tools);
  return fields;
}

function readTools(text: string): unknown[] {
  let tools: unknown;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`Tools: this isn't JSON (${error instanceof Error ? error.message : String(error)}).`);
  }
  if (!Array.isArray(tools)) throw new Error('Tools: send a JSON list, such as [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}].');
  return tools;
}
