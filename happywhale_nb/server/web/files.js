// Chosen or dropped files: folders, groups, thumbnails.

import { el } from "./dom.js";

const READ = ["jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "tif", "tiff", "webp", "bmp", "dib", "gif", "avif", "heic", "heif", "hif", "jp2", "j2k", "jpx", "ppm", "pgm", "pnm"];
const RAW = /\.(3fr|arw|cr2|cr3|crw|dcr|dng|erf|iiq|kdc|mef|mos|mrw|nef|nrw|orf|pef|raf|raw|rw2|rwl|sr2|srf|srw|x3f)$/i; // sent; the server rejects them and names the remedy
const ENDINGS = new RegExp(`\\.(${READ.join("|")})$`, "i");
const WIDE = 320;

export const isPhoto = (file) => file.type.startsWith("image/") || ENDINGS.test(file.name) || RAW.test(file.name);

/** The file types that a file dialog accepts. For images only, phones convert HEIC to JPEG. */
export const offered = () => ["image/*", ...(matchMedia("(pointer: coarse)").matches ? [] : READ.map((ending) => `.${ending}`))].join(",");

/** The folder of a chosen or dropped file, "" without one. */
export function folderOf(file) {
  const path = file.foundAt ?? file.webkitRelativePath ?? "";
  return path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "";
}

/** Files as encounters, `{name, files}` each: "one" (or "") for all, "each" for every file, "folder" for every folder. */
export function grouped(files, how) {
  if (!files.length) return [];
  if (how === "each") return files.map((file) => ({ name: "", files: [file] }));
  if (how === "one" || !how) return [{ name: "", files: [...files] }];
  const folders = new Map();
  for (const file of files) folders.set(folderOf(file), [...(folders.get(folderOf(file)) ?? []), file]);
  return [...folders].map(([folder, inside]) => ({ name: folder.split("/").at(-1), files: inside }));
}

/** All dropped files, including those in dropped folders and subfolders. */
export async function walk(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const files = [];
  const visit = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((done, stop) => entry.file(done, stop));
      file.foundAt = entry.fullPath.replace(/^\//, "");
      files.push(file);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const batch = await new Promise((done, stop) => reader.readEntries(done, stop));
      if (!batch.length) return;
      for (const one of batch) await visit(one);
    }
  };
  for (const entry of entries) await visit(entry);
  return files;
}

/** Returns a function from a file to its thumbnail. Thumbnails are made one at a time, because a season's photographs
 *  in full size do not fit into a phone's memory. A file that the browser cannot show has none. */
export function thumbnails(signal) {
  const made = new Map();
  let last = Promise.resolve();
  async function draw(file, holder) {
    if (signal.aborted) return;
    try {
      const small = await createImageBitmap(file, { resizeWidth: WIDE, resizeQuality: "medium" });
      const canvas = el("canvas", { width: small.width, height: small.height });
      canvas.getContext("2d").drawImage(small, 0, 0);
      small.close();
      const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.8));
      const url = URL.createObjectURL(blob);
      signal.addEventListener("abort", () => URL.revokeObjectURL(url));
      holder.append(el("img", { src: url, alt: "" }));
    } catch {
      holder.classList.add("nobody");
      holder.textContent = "No preview";
    }
  }
  return (file) => {
    if (!made.has(file)) {
      const holder = el("span", { class: "whole" });
      made.set(file, holder);
      last = last.then(() => draw(file, holder));
    }
    return made.get(file);
  };
}
