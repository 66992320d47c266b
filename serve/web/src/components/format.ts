/** Numbers, sizes and durations as text. */
const plainNumber = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const MINUS = "\u2212";

/** A count: 12,345. */
export function count(value: number): string {
  return plainNumber.format(value);
}

/** A large number in three digits: 1.23M. */
export function compact(value: number): string {
  return short.format(value);
}

/** A measured number in `digits` significant digits: 0.0123, 1.20e-5. */
export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-4 || size >= 1e7 ? value.toExponential(digits - 1) : trimmed(value.toPrecision(digits));
  return text.replace("-", MINUS);
}

function trimmed(text: string): string {
  return text.includes("e") ? String(Number(text)) : text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** A share: 0.123 as 12.3 %. */
export function percent(value: number): string {
  return `${(100 * value).toFixed(value !== 0 && Math.abs(value) < 0.1 ? 1 : 0)} %`;
}

/** Bytes in units of 1024: 1.5 MiB. */
export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? size.toFixed(0) : size.toFixed(1)} ${units[unit]}`;
}

/** Seconds: 0.35 s, 12.4 s, 3 min 5 s, 2 h 10 min, 3 d 4 h. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(2).replace(/0$/, "") : seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** How long ago: just now, 5 min ago, 3 d ago; "in 5 min" for the future. */
export function ago(date: Date, now = Date.now()): string {
  const seconds = (now - date.getTime()) / 1000;
  const size = Math.abs(seconds);
  if (size < 10) return "just now";
  const text =
    size < 60 ? `${Math.floor(size)} s` : size < 3600 ? `${Math.floor(size / 60)} min` : size < 86400 ? `${Math.floor(size / 3600)} h` : `${Math.floor(size / 86400)} d`;
  return seconds >= 0 ? `${text} ago` : `in ${text}`;
}
