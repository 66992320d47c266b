/** A table that renders only the rows in sight, and asks for more when its end comes near. Rows have one height. */
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

export interface Column<T> {
  key: string;
  label: ComponentChildren;
  /** The cell. */
  cell: (row: T) => ComponentChildren;
  align?: "right";
  /** A CSS width; the others share the rest. */
  width?: string;
  /** Sorted by it now; a click on its header calls `onSort`. */
  sorted?: "ascending" | "descending" | "none";
  onSort?: () => void;
  /** Left out on a phone. */
  wide?: boolean;
}

interface TableProps<T> {
  columns: Column<T>[];
  rows: readonly T[];
  rowKey: (row: T) => string;
  label: string;
  /** px; cells are one line. */
  rowHeight?: number;
  /** CSS height of the scrolling part; by default as many rows as there are, at most 70 % of the window. */
  height?: string;
  /** Called when the last rows are in sight and there are more on the server. */
  onEnd?: () => void;
  hasMore?: boolean;
  selected?: string | null;
  /** A class for a row. */
  rowClass?: (row: T) => string;
}

const OVERSCAN = 8;

export function Table<T>(props: TableProps<T>) {
  const { columns, rows, rowKey, label, rowHeight = 36, height, onEnd, hasMore = false } = props;
  const box = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState({ first: 0, count: 30 });

  function measure(): void {
    const element = box.current;
    if (!element) return;
    const first = Math.max(0, Math.floor(element.scrollTop / rowHeight) - OVERSCAN);
    const count = Math.ceil(element.clientHeight / rowHeight) + 2 * OVERSCAN;
    setSeen((old) => (old.first === first && old.count === count ? old : { first, count }));
  }

  useLayoutEffect(measure, [rows.length]);
  useEffect(() => {
    const observer = new ResizeObserver(measure);
    if (box.current) observer.observe(box.current);
    return () => observer.disconnect();
  }, [rowHeight]);

  const last = Math.min(rows.length, seen.first + seen.count);
  const first = Math.min(seen.first, Math.max(0, last - 1));
  useEffect(() => {
    if (hasMore && last >= rows.length - OVERSCAN) onEnd?.();
  }, [last, rows.length, hasMore, onEnd]);

  return (
    <div
      ref={box}
      class="table-box"
      style={{ "--row-height": `${rowHeight}px`, height, maxHeight: height ? undefined : "70vh" }}
      tabIndex={0}
      role="region"
      aria-label={label}
      onScroll={measure}
    >
      <table aria-rowcount={hasMore ? -1 : rows.length + 1}>
        <colgroup>
          {columns.map((column) => <col key={column.key} class={column.wide ? "wide" : undefined} style={{ width: column.width }} />)}
        </colgroup>
        <thead>
          <tr aria-rowindex={1}>{columns.map((column) => <Header key={column.key} column={column} />)}</tr>
        </thead>
        <tbody>
          {first > 0 && <tr class="space" aria-hidden="true"><td colSpan={columns.length} style={{ height: `${first * rowHeight}px` }} /></tr>}
          {rows.slice(first, last).map((row, index) => {
            const key = rowKey(row);
            return (
              <tr
                key={key}
                aria-rowindex={first + index + 2}
                aria-selected={props.selected === undefined ? undefined : key === props.selected}
                class={`${(first + index) % 2 ? "odd" : "even"} ${props.rowClass?.(row) ?? ""}`}
              >
                {columns.map((column) => <td key={column.key} class={cellClass(column)}>{column.cell(row)}</td>)}
              </tr>
            );
          })}
          {last < rows.length && (
            <tr class="space" aria-hidden="true"><td colSpan={columns.length} style={{ height: `${(rows.length - last) * rowHeight}px` }} /></tr>
          )}
        </tbody>
      </table>
      {hasMore && <p class="muted more" role="status">Loading more…</p>}
    </div>
  );
}

function cellClass<T>(column: Column<T>): string {
  return `${column.align ?? "left"}${column.wide ? " wide" : ""}`;
}

function Header<T>({ column }: { column: Column<T> }) {
  return (
    <th scope="col" class={cellClass(column)} aria-sort={column.sorted}>
      {column.onSort ? (
        <button type="button" class="sort" onClick={column.onSort}>
          {column.label}
          <span aria-hidden="true">{column.sorted === "ascending" ? " ▲" : column.sorted === "descending" ? " ▼" : " ↕"}</span>
        </button>
      ) : (
        column.label
      )}
    </th>
  );
}
