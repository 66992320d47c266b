/** How the playground samples. */
import { Field } from "../../components/Field";
import type { Options } from "./options";

const NUMBERS: { name: keyof Options; label: string; step: string; min: number; placeholder?: string }[] = [
  { name: "temperature", label: "Temperature", step: "0.1", min: 0 },
  { name: "maxTokens", label: "Most tokens", step: "1", min: 1 },
  { name: "topP", label: "Top p", step: "0.05", min: 0, placeholder: "1" },
  { name: "seed", label: "Seed", step: "1", min: 0, placeholder: "random" },
  { name: "n", label: "Answers", step: "1", min: 1 },
];

export function OptionsForm({ options, onChange }: { options: Options; onChange: (options: Options) => void }) {
  return (
    <details class="playground-options">
      <summary>System prompt and sampling</summary>
      <Field label="System prompt">
        <textarea rows={2} dir="auto" value={options.system} onInput={(event) => onChange({ ...options, system: event.currentTarget.value })} />
      </Field>
      <div class="option-numbers">
        {NUMBERS.map(({ name, label, step, min, placeholder }) => (
          <Field key={name} label={label}>
            <input
              type="number"
              step={step}
              min={min}
              placeholder={placeholder}
              value={String(options[name])}
              onInput={(event) => onChange({ ...options, [name]: event.currentTarget.value })}
            />
          </Field>
        ))}
      </div>
      <Field label="Tools" hint="A JSON list of functions, as in OpenAI's chat completions. Calls are shown, not run.">
        <textarea rows={3} class="mono" spellcheck={false} value={options.tools} onInput={(event) => onChange({ ...options, tools: event.currentTarget.value })} />
      </Field>
    </details>
  );
}
