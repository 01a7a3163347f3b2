"""Table 1 and the counts of sections 2 and 3.4, from Happywhale's own table.

python bench/counts.py DATA_FOLDER        # with Kaggle's train.csv, such as data/happywhale
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from happywhale_nb.core.artifacts import write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.stages.eda import imbalance

HERE = Path(__file__).resolve().parents[1]
TABLE_1 = (  # as printed; two spellings of Happywhale's stand there corrected, so that their species stand there twice
    *(("bottlenose_dolphin", 9664), ("beluga", 7443), ("humpback_whale", 7392), ("blue_whale", 4830)),
    *(("false_killer_whale", 3326), ("dusky_dolphin", 3139), ("spinner_dolphin", 1700), ("melon_headed_whale", 1689)),
    *(("minke_whale", 1608), ("killer_whale", 1493), ("fin_whale", 1324), ("gray_whale", 1123)),
    *(("bottlenose_dolphin", 1117), ("killer_whale", 962), ("southern_right_whale", 866), ("spotted_dolphin", 490)),
    *(("sei_whale", 428), ("short_finned_pilot_whale", 367), ("common_dolphin", 347), ("cuviers_beaked_whale", 341)),
    *(("pilot_whale", 262), ("long_finned_pilot_whale", 238), ("white_sided_dolphin", 229), ("brydes_whale", 154)),
    *(("pantropic_spotted_dolphin", 145), ("globis", 116), ("commersons_dolphin", 90), ("pygmy_killer_whale", 76)),
    *(("rough_toothed_dolphin", 60), ("frasers_dolphin", 14)),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "counts.json")
    given = parser.parse_args()
    train = read_dataset(given.data, need_photos=False).train
    spelled = train["species_raw"].value_counts()
    rows = [{"species": species, "paper": printed, "ours": 0, "spelled": ""} for species, printed in TABLE_1]
    for spelling, count in spelled.items():  # the table prints each count once
        row = next((row for row in rows if row["paper"] == count and not row["spelled"]), None)
        if row:
            row.update(ours=int(count), spelled=spelling)
    merged, raw = imbalance(train), imbalance(train, "species_raw")
    killer = train.loc[train["species"] == "killer_whale", "species_raw"].value_counts()
    totals = {
        **{"photographs": len(train), "individuals": train["individual_id"].nunique(), "spellings": len(spelled)},
        **{"species": train["species"].nunique(), "top_five_spelled": float(raw["share of the five largest species"])},
        "top_five_merged": float(merged["share of the five largest species"]),
        **{"last_ten": float(spelled.iloc[-10:].sum() / len(train)), "killer_whales": int(killer.sum())},
    }
    same = sum(row["paper"] == row["ours"] for row in rows)
    content = {"name": "counts", "date": datetime.now(UTC).isoformat(timespec="seconds"), "totals": totals}
    write_json(given.to, content | {"table_1": {"same": same, "rows": len(rows)}, "species": rows})
    print(f"{same} of {len(rows)} rows of table 1 agree; {totals}")


if __name__ == "__main__":
    main()
