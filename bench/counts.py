"""Table 1 and the counts of sections 2 and 3.4, from Happywhale's own table.

python bench/counts.py DATA_FOLDER        # with Kaggle's train.csv, such as data/happywhale
"""

import argparse
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from happywhale_nb.core.artifacts import write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.stages.eda_tables import imbalance

HERE = Path(__file__).resolve().parents[1]
TABLE_1 = (  # as printed: three spellings of Happywhale's stand there corrected, two of them beside the right ones
    *(("bottlenose_dolphin", 9664), ("beluga", 7443), ("humpback_whale", 7392), ("blue_whale", 4830)),
    *(("false_killer_whale", 3326), ("dusky_dolphin", 3139), ("spinner_dolphin", 1700), ("melon_headed_whale", 1689)),
    *(("minke_whale", 1608), ("killer_whale", 1493), ("fin_whale", 1324), ("gray_whale", 1123)),
    *(("bottlenose_dolphin", 1117), ("killer_whale", 962), ("southern_right_whale", 866), ("spotted_dolphin", 490)),
    *(("sei_whale", 428), ("short_finned_pilot_whale", 367), ("common_dolphin", 347), ("cuviers_beaked_whale", 341)),
    *(("pilot_whale", 262), ("long_finned_pilot_whale", 238), ("white_sided_dolphin", 229), ("brydes_whale", 154)),
    *(("pantropic_spotted_dolphin", 145), ("globis", 116), ("commersons_dolphin", 90), ("pygmy_killer_whale", 76)),
    *(("rough_toothed_dolphin", 60), ("frasers_dolphin", 14)),
)


def compare(spelled, species_of):
    """The rows of table 1 beside Happywhale's counts, paired by name.

    A spelling stands under its own name; one that is not printed, under the name of its species, or the nearest one.
    Where a name is printed twice, the larger count comes first.
    """
    printed = [species for species, _ in TABLE_1]
    under = {}
    for spelling, count in spelled.items():  # from the largest
        names = [name for name in (spelling, species_of[spelling]) if name in printed]
        names += get_close_matches(spelling, printed, 1, 0.9)
        under.setdefault(names[0] if names else "", []).append((spelling, int(count)))
    rows = []
    for species, paper in TABLE_1:
        spelling, count = under[species].pop(0) if under.get(species) else ("", 0)
        rows.append({"species": species, "paper": paper, "ours": count, "spelled": spelling})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "counts.json")
    given = parser.parse_args()
    train = read_dataset(given.data, need_photos=False).train
    spelled = train["species_raw"].value_counts()
    rows = compare(spelled, train.set_index("species_raw")["species"].to_dict())
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
