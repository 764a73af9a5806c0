from .figures import draw_analysis as draw_analysis
from .report import analysis_report as analysis_report
from .result import Analysis as Analysis
