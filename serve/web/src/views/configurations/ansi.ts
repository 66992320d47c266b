/** Colours of terminals in lines of logs. Other control sequences are dropped, so that none acts on the page. */
export interface Piece {
  text: string;
  /** A colour of the terminal's palette, 0 to 7. */
  color: number | null;
  bold: boolean;
}

// CSI sequences, OSC sequences up to BEL or ST, other two-character escapes.
const ESCAPES = /\u001b(?:\[([0-9;:]*)([ -/]*[@-~])|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[@-Z\\^_])/g;

/** Split a line at its colours. What a carriage return overwrote is left out, as on a terminal. */
export function pieces(line: string): Piece[] {
  const shown = line.replace(/\r+$/, "");
  const text = shown.slice(shown.lastIndexOf("\r") + 1);
  const found: Piece[] = [];
  let color: number | null = null;
  let bold = false;
  let end = 0;
  const add = (until: number): void => {
    if (until > end) found.push({ text: text.slice(end, until), color, bold });
  };
  for (const escape of text.matchAll(ESCAPES)) {
    add(escape.index);
    end = escape.index + escape[0].length;
    if (escape[2] === "m") ({ color, bold } = after(escape[1] ?? "", color, bold));
  }
  add(text.length);
  return found;
}

function after(codes: string, color: number | null, bold: boolean): { color: number | null; bold: boolean } {
  const numbers = codes.split(/[;:]/).map((code) => Number(code || 0));
  for (let index = 0; index < numbers.length; index += 1) {
    const code = numbers[index] as number;
    if (code === 0) [color, bold] = [null, false];
    else if (code === 1) bold = true;
    else if (code === 22) bold = false;
    else if (code === 39) color = null;
    else if (code >= 30 && code <= 37) color = code - 30;
    else if (code >= 90 && code <= 97) color = code - 90;
    else if (code === 38 || code === 48) index += numbers[index + 1] === 2 ? 4 : 2; // 256 colours or RGB: not shown
  }
  return { color, bold };
}
