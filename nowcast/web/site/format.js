// Numbers and times as a forecaster reads them.

const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const date = { weekday: "short", day: "numeric", month: "short", year: "numeric" };

function formatter(extra, zone) {
  return new Intl.DateTimeFormat("en-GB", zone ? { ...extra, timeZone: zone } : extra);
}

const utcTime = formatter(options, "UTC"), localTime = formatter(options);
const utcDate = formatter(date, "UTC"), localDate = formatter(date);
const zoneName = formatter({ ...options, timeZoneName: "short" });

export const hhmm = (ms) => utcTime.format(ms);

export function zone(ms) {
  return zoneName.formatToParts(ms).find((part) => part.type === "timeZoneName").value;
}

/** {time, zone, date} in UTC or in the zone of the browser. */
export function stamp(ms, local) {
  return local
    ? { time: localTime.format(ms), zone: zone(ms), date: localDate.format(ms) }
    : { time: utcTime.format(ms), zone: "UTC", date: utcDate.format(ms) };
}

/** 4 min, 1 h 05, 3 d 02 h. */
export function age(ms) {
  const minutes = Math.max(0, Math.floor(ms / 60000));
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")}`;
  return `${Math.floor(hours / 24)} d ${String(hours % 24).padStart(2, "0")} h`;
}

/** Three significant digits, no exponent. */
export function number(value) {
  return String(Number(value.toPrecision(3)));
}

export function lonlat([lon, lat]) {
  const part = (value, plus, minus) => `${Math.abs(value).toFixed(3)}°${value < 0 ? minus : plus}`;
  return `${part(lat, "N", "S")} ${part(lon, "E", "W")}`;
}

export const lead = (minutes) => `+${minutes} min`;
