/** Code to copy. */
import { CopyButton } from "./CopyButton";
import { Text } from "./Text";

export function Code({ text, label }: { text: string; label: string }) {
  return (
    <div class="code">
      <pre tabIndex={0} aria-label={label} dir="ltr"><code><Text value={text} /></code></pre>
      <CopyButton text={text} of={label} />
    </div>
  );
}
