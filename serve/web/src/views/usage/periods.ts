/** Stretches of days in UTC, as the ledger has them. */
export interface Period {
  /** First and last day, YYYY-MM-DD. */
  from: string;
  to: string;
}

const DAY_MS = 86_400_000;

export const PERIODS = [
  { name: "today", label: "Today" },
  { name: "yesterday", label: "Yesterday" },
  { name: "week", label: "Last 7 days" },
  { name: "month", label: "This month" },
  { name: "last-month", label: "Last month" },
] as const;

export function day(date: Date): string {
  return date.toISOString().slice(0, 10);
}

/** Return the days of a named period, or those that are given. */
export function periodOf(name: string, from: string | null, to: string | null, now = new Date()): Period {
  const before = (days: number): string => day(new Date(now.getTime() - days * DAY_MS));
  const today = day(now);
  if (from && to && isDay(from) && isDay(to)) return from <= to ? { from, to } : { from: to, to: from };
  switch (name) {
    case "today":
      return { from: today, to: today };
    case "yesterday":
      return { from: before(1), to: before(1) };
    case "month":
      return { from: `${today.slice(0, 7)}-01`, to: today };
    case "last-month": {
      const last = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 0));
      return { from: `${day(last).slice(0, 7)}-01`, to: day(last) };
    }
    default:
      return { from: before(6), to: today };
  }
}

/** Return the time after the last day of a period. */
export function endOf(period: Period): string {
  return day(new Date(Date.parse(period.to) + DAY_MS));
}

/** Return the hours or days of a period, as the ledger names them. */
export function columnsOf(period: Period): { by: "hour" | "day"; names: string[] } {
  const days: string[] = [];
  for (let at = Date.parse(period.from); at <= Date.parse(period.to) && days.length < 400; at += DAY_MS) days.push(day(new Date(at)));
  if (days.length > 1) return { by: "day", names: days };
  return { by: "hour", names: Array.from({ length: 24 }, (_, hour) => `${period.from}T${String(hour).padStart(2, "0")}:00Z`) };
}

function isDay(text: string): boolean {
  return /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(Date.parse(text));
}
