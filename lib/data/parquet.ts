import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { typeError } from "../device/errors.js";
import { Row } from "./jsonl.js";

/**
 * Reads the rows of a Parquet file, a row group at a time. 64-bit integers that are exact as numbers become numbers.
 * @throws TypeError `PARQUET` naming the file
 */
export async function* readParquet(file: string): AsyncGenerator<Row> {
  const fail = (error: Error) => {
    throw typeError("PARQUET", `${file} cannot be read as Parquet: ${error.message}`);
  };
  const buffer = await asyncBufferFromFile(file).catch(fail);
  const metadata = await parquetMetadataAsync(buffer).catch(fail);
  let rowStart = 0;
  for (const { num_rows } of metadata.row_groups) {
    const rowEnd = rowStart + Number(num_rows);
    const rows = await parquetReadObjects({ file: buffer, metadata, rowStart, rowEnd, compressors }).catch(fail);
    for (const [i, row] of rows.entries()) yield new Row(numbers(row) as Record<string, unknown>, `${file}, row ${rowStart + i + 1}`);
    rowStart = rowEnd;
  }
}

function numbers(value: unknown): unknown {
  if (typeof value === "bigint" && Number.isSafeInteger(Number(value))) return Number(value);
  if (Array.isArray(value)) return value.map(numbers);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, numbers(part)]));
}
